"""The neighbour lists of the own rows as a module: what :class:`snnet_kernels.memory_lists.MemoryLists` is in one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..memory_lists import MemoryLists
from ..neighbor_list_layout import NeighborLists
from .exchange import Exchange
from .own_lists import build_lists
from .rows import Division


class ShardedLists(MemoryLists):
    """Lists of the own rows, symmetric over all processes, without mirrors; ``products`` counts rows of all."""

    parts = NeighborLists._fields[:4]

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

    def _warn_if_slow(self, products: int) -> None:
        if self.exchange.rank == 0:
            super()._warn_if_slow(products)

    def build_(self, features: Tensor) -> None:
        """Make the lists of all processes' own rows ``features``; every process calls it."""
        made = build_lists(features, self.exchange, self.division, self.capacity, self.floor)
        products = torch.zeros((), dtype=torch.int64, device=features.device)
        self._take(made, products)

    def _are_whole(self, tables: NeighborLists, features: Tensor) -> bool:
        shape = len(features), self.width
        wanted = (torch.int32, 2), (torch.float32, 2), (torch.int32, 1), (torch.float32, 1)
        return all(
            table.dtype == dtype and table.shape == shape[:dims]
            for table, (dtype, dims) in zip(tables[:4], wanted, strict=True)
        )
