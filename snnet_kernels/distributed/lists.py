"""The neighbour lists of the own rows as a module: what :class:`snnet_kernels.memory_lists.MemoryLists` is in one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..memory_lists import MemoryLists, list_checksums
from ..neighbor_list_layout import NeighborLists
from .exchange import Exchange
from .own_lists import build_lists
from .rows import Division

SAVED = ("columns", "values", "counts", "floors", "products", "checksums")  # of a state dict


class ShardedLists(MemoryLists):
    """Lists of the own rows, symmetric over all processes, without mirrors; ``products`` counts rows of all."""

    def __init__(self, capacity: int, floor: float, exchange: Exchange, division: Division) -> None:
        super().__init__(capacity, floor)
        self.exchange, self.division = exchange, division

    @property
    def width(self) -> int:
        """Places of a list."""
        return min(self.capacity, self.division.n)

    @property
    def images(self) -> int:
        return self.division.n

    @property
    def tables(self) -> NeighborLists | None:
        if self.columns is None:
            return None
        return NeighborLists(self.columns, self.values, self.counts, self.floors)

    def _warn_if_slow(self, products: int) -> None:
        if self.exchange.rank == 0:
            super()._warn_if_slow(products)

    def build_(self, features: Tensor) -> None:
        """Make the lists of all processes' own rows ``features``; every process calls it."""
        made = build_lists(features, self.exchange, self.division, self.capacity, self.floor)
        products = torch.zeros((), dtype=torch.int64, device=features.device)
        self._take({**_tensors(made), "products": products})

    def load_(self, state: Mapping[str, object], prefix: str, features: Tensor) -> bool:
        """Take what :meth:`save_` wrote of the same rows; whether it has such lists, undamaged, of this capacity."""
        found = {}
        for name in SAVED:
            tensor = state.get(prefix + name)
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                return False
            found[name] = tensor.to(features.device, copy=True).contiguous()
        checksums = found.pop("checksums")
        tables = NeighborLists(*(found[name] for name in NeighborLists._fields if name in found))
        if found["products"].shape != () or not _fit(tables, features, self.width):
            return False
        if not torch.equal(checksums, list_checksums(features, tables)):
            return False
        self._take(found, int(found["products"]))
        return True


def _tensors(lists: NeighborLists) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in lists._asdict().items() if tensor is not None}


def _fit(lists: NeighborLists, features: Tensor, width: int) -> bool:
    """Whether the tables have the shapes and types of lists of these rows."""
    rows, wanted = len(features), ((torch.int32, 2), (torch.float32, 2), (torch.int32, 1), (torch.float32, 1))
    shapes = [(rows, width)[:dims] for _, dims in wanted]
    return all(
        table.dtype == dtype and table.shape == shape
        for table, (dtype, _), shape in zip(lists[:4], wanted, shapes, strict=True)
    )
