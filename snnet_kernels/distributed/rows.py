"""Which rows of the memories each process owns, and which samples of a batch it works on."""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import accumulate
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
        return torch.searchsorted(_ends(self, index.device), index.contiguous(), right=True)


@lru_cache(maxsize=8)
def _ends(division: Division, device: torch.device) -> Tensor:
    """Where the rows of each rank end, int64 [R]."""
    with torch.inference_mode(False):
        return torch.tensor([division.rows(rank).stop for rank in range(division.size)], device=device)


class Samples:
    """Who works on the samples of a batch."""

    def __init__(self, positions: Tensor, rank: int, division: Division) -> None:
        self.rank, self.division = rank, division
        self.positions = positions  # int64 [B], of all processes
        self.owner = division.owner(positions)  # int64 [B]
        by_owner, self.order = self.owner.sort(stable=True)  # int64 [B], the places in the batch by owner
        self.counts: list[int] = torch.bincount(self.owner, minlength=division.size).tolist()
        self.most = max(self.counts)
        starts = [0, *accumulate(self.counts)]
        # The places of this process's samples in the batch, and in its own rows, int64 [b].
        self.own = self.order[starts[rank] : starts[rank + 1]]
        self.rows = positions[self.own] - division.rows(rank).start
        ahead = torch.tensor([r * self.most - starts[r] for r in range(division.size)]).to(positions.device)
        places = torch.arange(len(positions), device=positions.device) + ahead[by_owner]
        self._at = torch.empty_like(places).scatter_(0, self.order, places)  # in blocks of all processes

    def places(self, rank: int) -> Tensor:
        """The places in the batch of the samples of a rank."""
        return self.order.split(self.counts)[rank]

    def of_owners(self, blocks: Tensor) -> Tensor:
        """What each owner has said of its samples, [R, most, ...], in order of the batch: [B, ...]."""
        return blocks.flatten(0, 1).index_select(0, self._at)

    @cached_property
    def rounds(self) -> list[tuple[Tensor | slice, Samples]]:
        """Entries of the batch, split so that no image comes twice in a part, earlier entries in earlier parts."""
        ordered, order = self.positions.sort(stable=True)
        if len(ordered) == 0:
            return []
        if not bool((ordered[1:] == ordered[:-1]).any()):
            return [(slice(None), self)]
        turn = torch.empty_like(order)
        turn[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
        parts = [(turn == r).nonzero().flatten() for r in range(int(turn.max()) + 1)]
        return [(part, Samples(self.positions[part], self.rank, self.division)) for part in parts]


def own_rows(n: int, rank: int, world_size: int) -> range:
    """The rows of n that a rank owns: blocks of 512, divided in order."""
    return Division(n, world_size).rows(rank)
