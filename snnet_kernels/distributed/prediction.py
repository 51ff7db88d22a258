"""Labels and neighbours of the own samples of a batch, from lists that are divided over processes.

A sample is worked on by the process that owns its image. Candidates, anchor and neighbour stand in its own lists;
whether a candidate is cycle consistent is asked of the process that owns the candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..ops.shard_lists import listed_ranks
from ..selection_keys import NO_KEY, columns_of, key_of, keys_of, values_of
from .exchange import Exchange
from .products import row_products
from .rows import Division

CANDIDATES_AT_ONCE = 32  # of a sample that are asked about in one exchange
PRODUCTS_AT_ONCE = 2**24  # where lists do not tell
CONSISTENT, INCONSISTENT, UNTOLD, ELSEWHERE = 0, 1, 2, 3


class Samples(NamedTuple):
    """Who works on the samples of a batch."""

    positions: Tensor  # int64 [B], of all processes
    owner: Tensor  # int64 [B]
    own: Tensor  # int64 [b], the places in the batch of this process's samples
    counts: list[int]  # samples of each process

    @staticmethod
    def of(index: Tensor, exchange: Exchange, division: Division) -> Samples:
        owner = division.owner(index)
        own = (owner == exchange.rank).nonzero().flatten()
        return Samples(index, owner, own, torch.bincount(owner, minlength=division.size).tolist())

    def places(self, rank: int) -> Tensor:
        """The places in the batch of the samples of a rank."""
        return (self.owner == rank).nonzero().flatten()


class Predicted(NamedTuple):
    """Of the own samples: the positives (sample int64 [E], column int64 [E]), the neighbour int64 [b], -1 without one,
    and how many rows were multiplied."""

    sample: Tensor
    column: Tensor
    neighbor: Tensor
    products: int


class OwnRows:
    """The own rows of a memory with their lists, as prediction reads them."""

    def __init__(
        self, features: Tensor, lists: NeighborLists, exchange: Exchange, division: Division
    ) -> None:
        self.features, self.lists, self.exchange, self.division = features, lists, exchange, division
        self.first = division.rows(exchange.rank).start
        self.products = 0

    def predict(
        self, samples: Samples, threshold: float, min_rank: int, query_rows: Tensor | None
    ) -> Predicted:
        """Labels as :func:`snnet_kernels.mplp` and the neighbour as :func:`snnet_kernels.nearest_neighbors` find them.

        ``query_rows`` [b, n] stand in the place of the own samples' rows of S.
        """
        keys = self._ordered_keys(samples, 1, threshold, query_rows)
        columns = columns_of(keys)
        own = samples.positions[samples.own]
        neighbor = self._first_other(keys, columns, own)
        bar, nan = key_of(threshold, 0), key_of(torch.inf, 0)  # the highest keys of these values
        if bool((keys > nan).any()):  # NaN, which is above nothing, comes first
            keys = keys.masked_fill(keys > nan, NO_KEY).sort(dim=1, descending=True).values
            columns = columns_of(keys)
        counts = (keys > bar).sum(1)
        positives = self._walk(columns, counts, counts.clamp_min(min_rank), samples)
        chosen = torch.arange(columns.shape[1], device=keys.device) < positives[:, None]
        chosen = chosen & (columns != own[:, None])
        sample, place = chosen.nonzero().unbind(1)
        every = torch.arange(len(own), device=own.device)
        return Predicted(
            torch.cat([sample, every]), torch.cat([columns[sample, place], own]), neighbor, self.products
        )

    def nearest(self, samples: Samples, k: int, query_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k nearest other images of the own samples, int64 [b, k], and their similarities [b, k].

        -1 and -inf behind the last: as :func:`snnet_kernels.nearest_neighbors`.
        """
        keys = self._ordered_keys(samples, k, torch.inf, query_rows)
        keys = keys.masked_fill(columns_of(keys) == samples.positions[samples.own, None], NO_KEY)
        keys = torch.nn.functional.pad(keys, (0, k), value=NO_KEY)
        keys = keys.sort(dim=1, descending=True).values[:, :k]
        there = keys > NO_KEY
        return columns_of(keys).masked_fill(~there, -1), values_of(keys).masked_fill(~there, -torch.inf)

    def _ordered_keys(self, samples: Samples, k: int, threshold: float, query_rows: Tensor | None) -> Tensor:
        """Falling keys [b, K] of the own samples' rows: all above the threshold and the k nearest others among them."""
        self.products = 0
        at = samples.positions[samples.own] - self.first
        if query_rows is not None:
            return self._row_keys(query_rows).sort(dim=1, descending=True).values
        keys, incomplete = self._listed(at, k, threshold)
        if self.exchange.any(bool(incomplete.any()), keys.device):
            rows = self._whole_rows(at[incomplete])
            self.products += len(rows)
            keys = torch.nn.functional.pad(keys, (0, rows.shape[1] - keys.shape[1]), value=NO_KEY)
            keys[incomplete] = self._row_keys(rows)
        return keys.sort(dim=1, descending=True).values

    def _listed(self, at: Tensor, k: int, threshold: float) -> tuple[Tensor, Tensor]:
        """Keys [b, K] of what the rows list, and which of them do not tell all candidates, or the k nearest others."""
        columns, floors = self.lists.columns[at].long(), self.lists.floors[at]
        keys = keys_of(self.lists.values[at], columns).masked_fill(columns < 0, NO_KEY)
        others = self.lists.values[at].masked_fill(columns == (at + self.first)[:, None], -torch.inf)
        last = (
            others.topk(k, dim=1).values[:, -1]
            if others.shape[1] >= k
            else torch.full_like(floors, -torch.inf)
        )
        told = (last > floors) | (floors == -torch.inf)
        return keys, (floors > torch.tensor(threshold, dtype=torch.float32, device=floors.device)) | ~told

    def _row_keys(self, rows: Tensor) -> Tensor:
        return keys_of(rows, torch.arange(rows.shape[1], device=rows.device).expand_as(rows))

    def _first_other(self, keys: Tensor, columns: Tensor, own: Tensor) -> Tensor:
        """The first column of each row that is not its own, -1 where there is none above -inf."""
        there = (columns != own[:, None]) & (keys > key_of(-torch.inf, 0))
        if there.shape[1] == 0:
            return torch.full_like(own, -1)
        place = there.to(torch.uint8).argmax(1, keepdim=True)
        return torch.where(there.any(1), columns.gather(1, place).squeeze(1), -1)

    def _whole_rows(self, at: Tensor) -> Tensor:
        """Products [m, n] of own rows with those of all processes; every process calls it."""
        counts = self._counts(len(at))
        rows = torch.cat(self.exchange.gather_rows(self.features[at], counts))
        products = row_products(rows, self.features)
        shapes = [(len(at), len(self.division.rows(rank))) for rank in range(self.division.size)]
        return torch.cat(self.exchange.send(list(products.split(counts)), shapes), dim=1)

    def _counts(self, own: int) -> list[int]:
        """The numbers of all processes."""
        return self.exchange.gather(torch.tensor([own], device=self.features.device)).flatten().tolist()

    def _walk(self, columns: Tensor, counts: Tensor, max_rank: Tensor, samples: Samples) -> Tensor:
        """How many of the ordered candidates [b, K] of each own sample are positive."""
        walking = (counts > 2) & (max_rank < self.division.n - 1)
        position, width = torch.where(walking, 0, counts), 1
        products = (
            len(samples.positions) * self.division.n // self.division.size
        )  # of one candidate of each sample
        most = max(1, min(CANDIDATES_AT_ONCE, PRODUCTS_AT_ONCE // max(products, 1)))
        while True:
            pending = position < counts
            if not self.exchange.any(bool(pending.any()), counts.device):
                break
            verdicts = self._ask(columns, counts, max_rank, position, samples)
            untold = (verdicts == UNTOLD) & ((verdicts == INCONSISTENT).cumsum(1) == 0)
            untold &= untold.cumsum(1) <= width
            behind = self._by_products(columns, position, max_rank, untold)
            verdicts = verdicts.masked_fill(untold, CONSISTENT).masked_fill(behind, INCONSISTENT)
            reached = verdicts != CONSISTENT
            place = torch.where(reached.any(1), reached.to(torch.uint8).argmax(1), CANDIDATES_AT_ONCE)
            ended = ((verdicts == INCONSISTENT) & (reached.cumsum(1) == 1)).any(1)
            position = torch.where(pending, (position + place).minimum(counts), position)
            counts = torch.where(ended, position.clamp_min(2).minimum(counts), counts)
            position = torch.where(ended, counts, position)
            width = min(2 * width, most)  # who goes on will need many products
        return counts

    def _ask(
        self, columns: Tensor, counts: Tensor, max_rank: Tensor, position: Tensor, samples: Samples
    ) -> Tensor:
        """Verdicts int8 [b, 32] on the next candidates of each own sample, CONSISTENT behind the last."""
        ahead = position[:, None] + torch.arange(CANDIDATES_AT_ONCE, device=position.device)
        there = ahead < counts[:, None]
        wide = torch.nn.functional.pad(columns, (0, 1), value=0)
        next_ones = wide.gather(1, ahead.clamp_max(columns.shape[1])).masked_fill(~there, -1)
        anchor = wide[:, :1]
        packed = torch.cat([next_ones, anchor, max_rank[:, None]], dim=1).to(torch.int32)
        asked = torch.cat(self.exchange.gather_rows(packed, samples.counts)).long()
        candidates, local = asked[:, :CANDIDATES_AT_ONCE], asked[:, :CANDIDATES_AT_ONCE] - self.first
        here = (candidates >= 0) & (local >= 0) & (local < len(self.features))
        sample, place = here.nonzero().unbind(1)
        verdicts = torch.full(candidates.shape, ELSEWHERE, dtype=torch.int8, device=candidates.device)
        verdicts[sample, place] = listed_ranks(
            *self.lists[:4],
            local[sample, place],
            asked[sample, -2].contiguous(),
            asked[sample, -1].contiguous(),
        )
        shape = len(samples.own), CANDIDATES_AT_ONCE
        found = torch.stack(
            self.exchange.send(list(verdicts.split(samples.counts)), [shape] * self.division.size)
        ).amin(0)
        return found.masked_fill(~there, CONSISTENT)

    def _by_products(self, columns: Tensor, position: Tensor, max_rank: Tensor, untold: Tensor) -> Tensor:
        """Which of the ``untold`` [b, 32] candidates from ``position`` on are inconsistent; every process calls it."""
        sample, place = untold.nonzero().unbind(1)
        asked = torch.stack(
            [columns[sample, position[sample] + place], columns[sample, :1].flatten(), max_rank[sample]],
            dim=1,
        )
        counts = self._counts(len(sample))
        behind = torch.zeros_like(untold)
        if not sum(counts):
            return behind
        all_asked = torch.cat(self.exchange.gather_rows(asked, counts))
        row, anchor, rank = all_asked.unbind(1)
        distinct, inverse = row.unique(return_inverse=True)
        self.products += len(distinct) if self.exchange.rank == 0 else 0  # counted once
        owners = Samples.of(distinct, self.exchange, self.division)
        rows = torch.cat(
            self.exchange.gather_rows(self.features[distinct[owners.own] - self.first], owners.counts)
        )
        products = row_products(rows, self.features)[inverse]
        local = anchor - self.first
        own = (local >= 0) & (local < len(self.features))
        bars = products.new_zeros(len(row))
        bars[own] = products[own, local[own]]
        bars = self.exchange.gather(bars).gather(0, self.division.owner(anchor)[None])[0]
        above = self.exchange.gather((products > bars[:, None]).sum(1)).sum(0)
        mine = (above > rank).split(counts)[self.exchange.rank]
        behind[sample, place] = mine
        return behind
