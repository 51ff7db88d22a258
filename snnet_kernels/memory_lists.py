"""The neighbour lists of an exemplar memory: labels from a thin part of S = M Mᵀ, at any number of images."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .derived import row_checksums
from .neighbor_list_layout import NeighborLists, are_symmetric, with_mirrors
from .ops.list_labels import mplp_from_lists, nearest_from_lists
from .ops.neighbor_lists import neighbor_lists
from .ops.similarity import memory_similarity
from .tracing import has_values

PROBED, FAR_TOO_MANY = 4, 2000  # images, and candidates of each: no fewer than 16 times the places of a list


class MemoryLists(nn.Module):
    """Symmetric neighbour lists with ``capacity`` places a row, 12 bytes a place (8 on a GPU), and what reads them.

    Labels and neighbours are those of the whole matrix S. Where the list of a row does not tell, because it has more to
    list than places, the row is multiplied: ``products`` int64 [] counts these rows since :meth:`build_`. Lists start
    from ``floor``. When they are built, each row selects at most half as many pairs as it has places, so that later
    updates find room; a row that many others select may be full.

    One warning says that lists are too short: when more than n rows have been multiplied, and more than half as many as
    labels and neighbours were asked for (``asked`` int64 [] counts these since the lists were built or loaded). A
    training step asks for 2 B, so its limit is B rows, as many as f Mᵀ has. On a GPU it comes from :meth:`are_worn`. If
    images have thousands of candidates, a step may take minutes: then on a CPU a warning comes before the first labels
    are predicted.

    Buffers (None until they are built): ``columns``, ``values``, ``counts``, ``floors``, ``mirrors``, see
    :class:`snnet_kernels.NeighborLists`; ``products``.
    """

    parts: tuple[str, ...] = NeighborLists._fields  # tables that are kept, and saved
    remedy = (  # what helps where lists are too short
        "Give more places (neighbors=... of a head or memory), or a higher threshold; renew_lists_() once an "
        "epoch lowers floors that have risen"
    )

    columns: Tensor | None
    values: Tensor
    counts: Tensor
    floors: Tensor
    mirrors: Tensor
    products: Tensor
    asked: Tensor

    def __init__(self, capacity: int, floor: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.floor = floor
        self._has_warned = False
        self._is_new = True  # no label was asked for since the lists were built or loaded
        # Products that came with loaded lists: how much was asked for meanwhile is not known.
        self._loaded_products = 0
        self._threshold = float("inf")  # of the labels that were asked for last
        for name in (*NeighborLists._fields, "products"):
            self.register_buffer(
                name, None, persistent=False
            )  # saved by save_: only with what they were made from

    @classmethod
    def saved_names(cls) -> tuple[str, ...]:
        """What a state dict has of lists."""
        return (*cls.parts, "products", "checksums")

    @property
    def tables(self) -> NeighborLists | None:
        """The lists as they stand, or None before they are built."""
        if self.columns is None:
            return None
        return NeighborLists(self.columns, self.values, self.counts, self.floors, self.mirrors)

    @property
    def images(self) -> int:
        """Rows of all lists together."""
        return 0 if self.columns is None else len(self.columns)

    def build_(self, features: Tensor) -> None:
        """Make the lists of ``features`` [n, d] by n²d/2 multiply-adds; in place where they are built already."""
        floor = None if self.capacity >= len(features) else self.floor
        made = neighbor_lists(features, self.capacity, floor=floor, symmetric=True)
        products = torch.zeros((), dtype=torch.int64, device=features.device)
        self._take(made, products)

    def _take(self, tables: NeighborLists, products: Tensor, loaded_products: int = 0) -> None:
        """Take the tensors as buffers, in the place of those that are there; nothing is asked of them yet."""
        tensors = {name: getattr(tables, name) for name in self.parts} | {"products": products}
        self._loaded_products, self._is_new = loaded_products, True
        if self.columns is not None and self.columns.device == tensors["columns"].device:
            for name, tensor in tensors.items():
                getattr(self, name).copy_(tensor)
            self.asked.zero_()
            return
        with torch.inference_mode(False):  # they may be written outside of that
            self.asked = torch.zeros_like(products)  # no buffer: it goes nowhere with the module
            for name, tensor in reversed(tensors.items()):  # columns last: who finds them finds everything
                setattr(self, name, tensor.clone() if tensor.is_inference() else tensor)

    def drop_(self) -> None:
        """Free the lists."""
        for name in self._buffers:
            setattr(self, name, None)

    def are_worn(self) -> bool:
        """Whether more rows have been multiplied beside the lists than a build multiplies, n/2, and a build helps."""
        if self.columns is None:
            return False
        made = int(self.products)
        self._warn_if_slow(made)
        return 2 * made > self.images and not self._start_too_high

    @property
    def _start_too_high(self) -> bool:
        """Whether labels read what no list holds, however new: similarities below the floor of all lists."""
        return self._threshold < self.floor and self.capacity < self.images

    def mplp(
        self, memory: Tensor, index: Tensor, threshold: float, min_rank: int, query_rows: Tensor | None
    ) -> Tensor:
        """Packed pseudo labels uint8 [B, label_bytes(n)] as :func:`snnet_kernels.mplp` predicts them."""
        if memory.device.type == "cpu" and has_values(memory):
            self._warn_of_a_long_wait(
                lambda: _candidates(memory, index[:PROBED], threshold, query_rows), threshold
            )
        labels, products = mplp_from_lists(
            memory, index, *self._tables_read(), query_rows, threshold, min_rank
        )
        self._count(products, len(index), threshold)
        return labels

    def nearest(self, memory: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k most similar other images as :func:`snnet_kernels.nearest_neighbors` finds them."""
        neighbors, similarity, products = nearest_from_lists(memory, index, *self._tables_read(), k)
        self._count(products, len(index))
        return neighbors, similarity

    def _tables_read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.columns is not None
        return self.columns, self.values, self.counts, self.floors

    def _count(self, products: Tensor, asked: int, threshold: float | None = None) -> None:
        """Rows that were multiplied for labels of the threshold, or for neighbours alone."""
        self.products.add_(products)  # and no assignment, for which a module looks long
        self.asked.add_(asked)
        if not has_values(products):
            return
        if threshold is not None:
            self._threshold = threshold
        if products.device.type == "cpu" and not self._has_warned:
            self._warn_if_slow(int(self.products))

    def _warn_of_a_long_wait(self, candidates: Callable[[], Tensor], threshold: float) -> None:
        """Once, before the first labels: if images have far more candidates than places, labels can take minutes.

        ``candidates()`` int64 [m] of the first images are only counted where they are needed.
        """
        if not self._is_new:
            return
        self._is_new = False
        if self._has_warned:
            return
        found = candidates()
        each = int(found.sum()) // max(len(found), 1)
        if each <= max(FAR_TOO_MANY, 16 * self.capacity):
            return
        self._has_warned = True
        _warn_caller(
            f"the first {len(found)} images have {each} candidates each above the threshold {threshold:g}, and "
            f"neighbour lists of {self.capacity} places: a label may take a product of a row for each candidate, "
            "which is right but slow. Raise the threshold"
        )

    def _warn_if_slow(self, products: int) -> None:
        """Once, where products took more than twice what the lists took to build, and are many for what was asked."""
        made = products - self._loaded_products
        if self._has_warned or self.columns is None or made <= self.images or 2 * made <= int(self.asked):
            return
        self._has_warned = True
        if self._start_too_high:
            lists = f"neighbour lists start at {self.floor:g}, above the threshold {self._threshold:g}"
            remedy = (
                "Give a floor below the threshold (floor=...; that of a head follows from the threshold that it is "
                "made with)"
            )
        else:
            lists = f"neighbour lists of {self.capacity} places are too short for many rows"
            remedy = self.remedy
        _warn_caller(
            f"{lists}: {made} products of a row were made beside them for {int(self.asked)} labels and neighbours, "
            f"which is right but slow. {remedy}"
        )

    def save_(self, destination: dict[str, Tensor], prefix: str, features: Tensor) -> None:
        """Write the lists of ``features`` [n, d] to a state dict, with checksums of both."""
        tables = self.tables
        assert tables is not None
        for name, buffer in self._buffers.items():
            if buffer is not None:
                destination[prefix + name] = buffer.detach()
        destination[prefix + "checksums"] = list_checksums(features, tables)

    def load_(self, state: Mapping[str, object], prefix: str, features: Tensor) -> bool:
        """Take the lists of ``features`` [n, d] from a state dict; whether it has such lists, of this capacity.

        Lists of other features, for instance where only these were edited, and damaged ones are not taken.
        """
        if not has_values(features):
            return False
        found = {}
        for name in self.saved_names():
            tensor = state.get(prefix + name)
            if not isinstance(tensor, Tensor) or not has_values(tensor) or not _is_dense(tensor):
                return False
            found[name] = tensor.to(features.device)
        checksums, products = found.pop("checksums"), found.pop("products")
        if (products.dtype, products.shape, checksums.dtype) != (torch.int64, (), torch.int64):
            return False
        tables = NeighborLists(**found)
        if not self._are_whole(tables, features):
            return False
        if not torch.equal(checksums, list_checksums(features, tables)):
            return False
        if "mirrors" in self.parts:
            tables = with_mirrors(tables)
        copies = (
            None if table is None else table.clone(memory_format=torch.contiguous_format) for table in tables
        )
        self._take(NeighborLists(*copies), products.clone(), int(products))  # type: ignore[arg-type]
        return True

    def _are_whole(self, tables: NeighborLists, features: Tensor) -> bool:
        """Whether the tables are such lists of the features, as far as that can be seen without products."""
        n = len(features)
        return tables.columns.shape == (n, min(self.capacity, n)) and are_symmetric(tables)


def _candidates(memory: Tensor, index: Tensor, threshold: float, query_rows: Tensor | None) -> Tensor:
    """How many candidates each image of ``index`` [m] has above the threshold, int64 [m]."""
    rows = memory_similarity(memory[index], memory) if query_rows is None else query_rows[: len(index)]
    return (rows > threshold).sum(1)


def _warn_caller(message: str) -> None:
    """Warn of the line that has called this package, perhaps through a module of torch's."""
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in ("snnet_kernels", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def list_checksums(features: Tensor, tables: NeighborLists) -> Tensor:
    """A checksum int64 [n] of each row of the features and of its list."""
    sums = row_checksums(features)
    for table in tables:
        if table is not None and table.numel() > 0:  # there are no mirrors on a GPU
            sums = 31 * sums + row_checksums(table.reshape(len(features), -1))  # modulo 2^64
    return sums
