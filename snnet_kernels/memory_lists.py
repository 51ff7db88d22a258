"""The neighbour lists of an exemplar memory: labels from a thin part of S = M Mᵀ, at any number of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .neighbor_list_layout import NeighborLists
from .ops.neighbor_lists import mplp_from_lists, nearest_from_lists, neighbor_lists, symmetric_lists


class MemoryLists(nn.Module):
    """Symmetric neighbour lists with ``capacity`` places a row, 12 bytes a place, and what is read from them.

    Labels and neighbours are those of the whole matrix S. Rows that have more to list than places are multiplied where
    their lists do not tell: ``products`` int64 [] counts them since :meth:`build_`. Lists are built half full, so that
    later updates find room.

    Buffers (None until they are built, not saved): ``columns``, ``values``, ``counts``, ``floors``, ``mirrors``, see
    :class:`snnet_kernels.NeighborLists`; ``products``.
    """

    columns: Tensor | None
    values: Tensor
    counts: Tensor
    floors: Tensor
    mirrors: Tensor
    products: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        for name in (*NeighborLists._fields, "products"):
            self.register_buffer(name, None, persistent=False)

    @property
    def tables(self) -> NeighborLists | None:
        """The lists as they stand, or None before they are built."""
        if self.columns is None:
            return None
        return NeighborLists(self.columns, self.values, self.counts, self.floors, self.mirrors)

    def build_(self, features: Tensor) -> None:
        """Make the lists of ``features`` [n, d] by n²d/2 multiply-adds; in place where they are built already."""
        n = features.shape[0]
        capacity = min(self.capacity, n)
        nearest = neighbor_lists(features, n if capacity == n else max(1, capacity // 2))
        made = symmetric_lists(*nearest[:4], capacity)
        if self.columns is not None and self.columns.device == features.device:
            for old, new in zip(self._buffers.values(), (*made, 0), strict=True):
                old.copy_(new) if isinstance(new, Tensor) else old.zero_()  # type: ignore[union-attr]
            return
        with torch.inference_mode(False):  # they may be written outside of that
            for name, tensor in zip(NeighborLists._fields, made, strict=True):
                setattr(self, name, tensor.clone() if tensor.is_inference() else tensor)
            self.products = torch.zeros((), dtype=torch.int64, device=features.device)

    def drop_(self) -> None:
        """Free the lists."""
        for name in self._buffers:
            setattr(self, name, None)

    def mplp(
        self, memory: Tensor, index: Tensor, threshold: float, min_rank: int, query_rows: Tensor | None
    ) -> Tensor:
        """Packed pseudo labels uint8 [B, label_bytes(n)] as :func:`snnet_kernels.mplp` predicts them."""
        labels, products = mplp_from_lists(memory, index, *self._inquired(), query_rows, threshold, min_rank)
        self.products += products
        return labels

    def nearest(self, memory: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k most similar other images as :func:`snnet_kernels.nearest_neighbors` finds them."""
        neighbors, similarity, products = nearest_from_lists(memory, index, *self._inquired(), k)
        self.products += products
        return neighbors, similarity

    def _inquired(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.columns is not None
        return self.columns, self.values, self.counts, self.floors
