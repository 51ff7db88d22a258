"""Which rows of the memories each process owns, and which samples of a batch it works on."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.shard_prediction import divided_samples
from .exchange import Exchange

BLOCK = 512  # rows of a block, which belongs to one process


class Division(NamedTuple):
    """n rows divided over the processes of a group: whole blocks, as equal as may be, in order of the ranks."""

    n: int
    size: int  # processes
    rank: int  # of this one

    @property
    def own(self) -> range:
        """The rows of this process."""
        return self.rows(self.rank)

    @property
    def first(self) -> int:
        """The first of them."""
        return self.own.start

    def rows(self, rank: int) -> range:
        """The rows of a rank; empty where there are fewer blocks than processes."""
        blocks = -(-self.n // BLOCK)
        first, last = (min(self.n, BLOCK * (blocks * r // self.size)) for r in (rank, rank + 1))
        return range(first, last)

    def owner(self, index: Tensor) -> Tensor:
        """The rank int64 [m] that owns each row of ``index`` int64 [m]."""
        return torch.searchsorted(self.ends(index.device), index.contiguous(), right=True)

    def ends(self, device: torch.device) -> Tensor:
        """Where the rows of each rank end, int64 [R]."""
        return _ends(self, device)

    def saved(self, device: torch.device) -> Tensor:
        """How a state says which rows it has: int64 [2], the first one and n."""
        return torch.tensor([self.first, self.n], device=device)

    def check_saved(self, found: object) -> None:
        """Raise ValueError unless ``found`` is :meth:`saved`; None, where an earlier version wrote it, can be any."""
        own, told = [self.first, self.n], found.tolist() if isinstance(found, Tensor) else found
        if told not in (own, None):
            raise ValueError(
                f"rows must be {own}, the first own row and num_instances, got {told}: this is the piece of another "
                "process, or of another number of them"
            )


@lru_cache(maxsize=8)
def _ends(division: Division, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([division.rows(rank).stop for rank in range(division.size)], device=device)


class Samples:
    """Who works on the samples of a batch."""

    def __init__(self, positions: Tensor, division: Division) -> None:
        self.positions = positions  # int64 [B], of all processes
        self.division = division
        # The process of each sample, the places in the batch by process, and in blocks of all processes: int64 [B].
        self.owner, self.order, self._at, counts = divided_samples(positions, division.ends(positions.device))
        self.counts: list[int] = counts.tolist()
        self.most = max(self.counts)
        # The places of this process's samples in the batch, and in its own rows, int64 [b].
        self.own = self.places(division.rank)
        self.rows = positions[self.own] - division.first

    def places(self, rank: int) -> Tensor:
        """The places in the batch of the samples of a rank."""
        return self.order.split(self.counts)[rank]

    def of_owners(self, blocks: Tensor) -> Tensor:
        """What each owner has said of its samples, [R, most, ...], in order of the batch: [B, ...]."""
        return blocks.flatten(0, 1).index_select(0, self._at)

    def to_loaders(self, answers: Tensor, exchange: Exchange) -> Tensor:
        """``answers`` [b, ...] on the own samples go to the processes that have loaded these, as many each.

        What comes back: the answers on the samples that this process has loaded, in their order.
        """
        size, rank = self.division.size, self.division.rank
        loaded = len(self.positions) // size
        asked = self.owner[rank * loaded : (rank + 1) * loaded]  # the owners of those loaded here
        going, coming = (
            torch.bincount(ranks, minlength=size).tolist() for ranks in (self.own // max(loaded, 1), asked)
        )
        found = exchange.send(answers, going, coming)
        answer = torch.empty_like(found)
        answer[asked.sort(stable=True).indices] = found
        return answer

    @cached_property
    def rounds(self) -> list[tuple[Tensor | slice, Samples]]:
        """Entries of the batch, split so that no image comes twice in a part, earlier entries in earlier parts."""
        if len(self.positions) == 0:
            return []
        if len(set(self.positions.tolist())) == len(self.positions):
            return [(slice(None), self)]
        ordered, order = self.positions.sort(stable=True)
        turn = torch.empty_like(order)
        turn[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
        parts = [(turn == r).nonzero().flatten() for r in range(int(turn.max()) + 1)]
        return [(part, Samples(self.positions[part], self.division)) for part in parts]


def own_rows(n: int, rank: int, world_size: int) -> range:
    """The rows of n that a rank owns: blocks of 512, divided in order."""
    return Division(n, world_size, rank).own
