"""Which rows of the memories each process owns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 512  # rows of a block, which belongs to one process: products of a share are those of the whole to the bit


class Division(NamedTuple):
    """n rows divided over the processes of a group: whole blocks, as equal as may be, in order of the ranks."""

    n: int
    size: int  # processes

    def rows(self, rank: int) -> range:
        """The rows of a rank; empty where there are fewer blocks than processes."""
        blocks = -(-self.n // BLOCK)
        first, last = (min(self.n, BLOCK * (blocks * r // self.size)) for r in (rank, rank + 1))
        return range(first, last)

    def owner(self, index: Tensor) -> Tensor:
        """The rank int64 [m] that owns each row of ``index`` int64 [m]."""
        ends = torch.tensor([self.rows(rank).stop for rank in range(self.size)], device=index.device)
        return torch.searchsorted(ends, index.contiguous(), right=True)


def own_rows(n: int, rank: int, world_size: int) -> range:
    """The rows of n that a rank owns: blocks of 512, divided in order."""
    return Division(n, world_size).rows(rank)
