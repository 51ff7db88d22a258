"""Labels and neighbours of the samples of a batch, from lists that are divided over processes.

A sample is worked on by the process that owns its image: candidates, anchor and neighbour stand in its own lists, and
it tells them to all. The process that owns a candidate tells all others whether it is cycle consistent. So every
process knows the labels of the whole batch after two exchanges, unless a sample has many candidates or lists do not
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..ops.shard_lists import listed_candidates, listed_ranks
from ..selection_keys import NO_KEY, columns_of, key_of, keys_of, values_of
from .exchange import Exchange, padded
from .products import row_products
from .rows import Division

CANDIDATES_AT_ONCE = 32  # of a sample that are told, and asked about, in one exchange; or a multiple
MOST_AT_ONCE = 128
PRODUCTS_AT_ONCE = 2**24  # where lists do not tell
CONSISTENT, INCONSISTENT, UNTOLD, ELSEWHERE = 0, 1, 2, 3
STALE, INCOMPLETE = 1, 2


class Samples(NamedTuple):
    """Who works on the samples of a batch."""

    positions: Tensor  # int64 [B], of all processes
    owner: Tensor  # int64 [B]
    order: Tensor  # int64 [B], the places in the batch by owner, then as they come
    counts: list[int]  # samples of each process
    own: Tensor  # int64 [b], the places in the batch of this process's samples

    @staticmethod
    def of(index: Tensor, exchange: Exchange, division: Division) -> Samples:
        owner = division.owner(index)
        order = owner.sort(stable=True).indices
        counts = torch.bincount(owner, minlength=division.size).tolist()
        return Samples(index, owner, order, counts, order.split(counts)[exchange.rank])

    def places(self, rank: int) -> Tensor:
        """The places in the batch of the samples of a rank."""
        return self.order.split(self.counts)[rank]

    def of_owners(self, blocks: Sequence[Tensor] | Tensor) -> Tensor:
        """What each owner has said of its samples, [R, counts[r] or more, ...], in order of the batch: [B, ...]."""
        rows = torch.cat([block[:count] for block, count in zip(blocks, self.counts, strict=True)])
        found = torch.empty_like(rows)
        found[self.order] = rows
        return found


class Inquiry(NamedTuple):
    """What is asked of the label memory on the way."""

    sizes: Tensor  # int64 [b], entries that the owner of a sample tells all of
    entries: Tensor  # int32 [E], sample by sample
    tell: Callable[[Tensor], Tensor]  # of the neighbours [B] of all samples: what each process tells of them


class Predicted(NamedTuple):
    """Of all samples of the batch, in every process."""

    sample: Tensor  # int64 [E], the positives: places in the batch
    column: Tensor  # int64 [E], and images
    neighbor: Tensor  # int64 [B], -1 without one
    products: int  # rows that were multiplied
    sizes: Tensor  # int64 [B], of the inquiry
    told: list[
        Tensor
    ]  # [R, ...] each: the inquiry's entries, and what each process has told of the neighbours


class _Candidates(NamedTuple):
    """Of the own samples."""

    columns: Tensor  # [b, K], by falling similarity; -1 behind the last
    counts: Tensor  # int64 [b]
    neighbor: Tensor  # int64 [b]


class OwnRows:
    """The own rows of a memory with their lists, as prediction reads them."""

    def __init__(
        self, features: Tensor, lists: NeighborLists | None, exchange: Exchange, division: Division
    ) -> None:
        self.features, self._lists, self.exchange, self.division = features, lists, exchange, division
        self.first = division.rows(exchange.rank).start
        self.products = 0

    @property
    def lists(self) -> NeighborLists:
        assert self._lists is not None
        return self._lists

    def predict(
        self,
        samples: Samples,
        threshold: float,
        min_rank: int,
        query_rows: Tensor | None,
        *,
        stale: bool,
        inquiry: Inquiry | None = None,
    ) -> Predicted | None:
        """Labels as :func:`snnet_kernels.mplp` and the neighbour as :func:`snnet_kernels.nearest_neighbors` find them.

        ``query_rows`` [b, n] stand in the place of the own samples' rows of S. None where the lists of one of the
        processes are ``stale``.
        """
        self.products = 0
        told = self._told_candidates(samples, threshold, query_rows, stale, inquiry)
        if told is None:
            return None
        found, rows = told
        chunk, rest = rows[:, :-4], rows[:, -4:].long()
        counts, neighbor, sizes, _ = rest.unbind(1)
        if len(counts):  # what this batch would have taken at once
            needed = -(-int(counts.max()) // CANDIDATES_AT_ONCE) * CANDIDATES_AT_ONCE
            self.exchange.candidates_told = min(max(needed, CANDIDATES_AT_ONCE), MOST_AT_ONCE)
        aboard: list[Tensor] = []
        if inquiry is not None:
            most = max(int(part.sum()) for part in sizes[samples.order].split(samples.counts))
            aboard = [padded(inquiry.entries, most), inquiry.tell(neighbor)]
        sample, column, answers = self._walk(found.columns, chunk, counts, min_rank, samples, aboard)
        every = torch.arange(len(samples.positions), device=sample.device)
        return Predicted(
            torch.cat([sample, every]),
            torch.cat([column, samples.positions]),
            neighbor,
            self.products,
            sizes,
            answers,
        )

    def _told_candidates(
        self,
        samples: Samples,
        threshold: float,
        query_rows: Tensor | None,
        stale: bool,
        inquiry: Inquiry | None,
    ) -> tuple[_Candidates, Tensor] | None:
        """The candidates of the own samples, and of all samples int32 [B, w + 4]: the first candidates, how many there
        are, the neighbour, how much the inquiry tells, and what is missing."""
        own = samples.positions[samples.own]
        sizes = torch.zeros_like(own) if inquiry is None else inquiry.sizes
        missing = torch.zeros_like(own)
        if stale:
            found = _Candidates(torch.empty_like(own)[:, None], missing, missing)
        elif query_rows is not None:
            found = self._row_candidates(own, query_rows, threshold)
        else:
            *listed, complete = listed_candidates(*self.lists[:4], own - self.first, self.first, threshold)
            found = _Candidates(*listed)
            missing = torch.where(complete, 0, INCOMPLETE)
        while True:
            first = _next_ones(
                found, torch.zeros_like(own), max(self.exchange.candidates_told, CANDIDATES_AT_ONCE)
            )
            rest = torch.stack([found.counts, found.neighbor, sizes, missing], dim=1).to(torch.int32)
            block = padded(torch.cat([first, rest], dim=1), max(samples.counts, default=0))
            if stale:
                block[:, -1] = STALE  # where it owns no sample it says so too
            blocks = self.exchange.gather(block)
            if bool((blocks[..., -1] == STALE).any()):
                return None
            rows = samples.of_owners(blocks)
            incomplete = rows[:, -1] == INCOMPLETE
            if not bool(incomplete.any()):
                return found, rows
            counts = [int(incomplete[samples.places(rank)].sum()) for rank in range(self.division.size)]
            self.products += sum(counts)
            which = missing.nonzero().flatten()
            whole = self._row_candidates(
                own[which], self._whole_rows(own[which] - self.first, counts), threshold
            )
            wide = torch.nn.functional.pad(
                found.columns.long(), (0, self.division.n - found.columns.shape[1]), value=-1
            )
            wide[which] = whole.columns
            found = _Candidates(
                wide,
                found.counts.index_copy(0, which, whole.counts),
                found.neighbor.index_copy(0, which, whole.neighbor),
            )
            missing = torch.zeros_like(own)

    def _row_candidates(self, own: Tensor, rows: Tensor, threshold: float) -> _Candidates:
        """Of the images ``own`` [m] with their rows of S, [m, n]."""
        keys = self._row_keys(rows).sort(dim=1, descending=True).values
        columns = columns_of(keys)
        there = (columns != own[:, None]) & (keys > key_of(-torch.inf, 0))
        place = there.to(torch.uint8).argmax(1, keepdim=True)
        neighbor = torch.where(there.any(1), columns.gather(1, place).squeeze(1), -1)
        bar, nan = key_of(threshold, 0), key_of(torch.inf, 0)  # the highest keys of these values
        if bool((keys > nan).any()):  # NaN, which is above nothing, comes first
            keys = keys.masked_fill(keys > nan, NO_KEY).sort(dim=1, descending=True).values
            columns = columns_of(keys)
        above = keys > bar
        return _Candidates(columns.masked_fill(~above, -1), above.sum(1), neighbor)

    def nearest(self, samples: Samples, k: int, query_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k nearest other images of the own samples, int64 [b, k], and their similarities [b, k].

        -1 and -inf behind the last: as :func:`snnet_kernels.nearest_neighbors`.
        """
        keys = self._keys(samples, k, query_rows)
        keys = keys.masked_fill(columns_of(keys) == samples.positions[samples.own, None], NO_KEY)
        keys = torch.nn.functional.pad(keys, (0, k), value=NO_KEY)
        keys = keys.sort(dim=1, descending=True).values[:, :k]
        there = keys > NO_KEY
        return columns_of(keys).masked_fill(~there, -1), values_of(keys).masked_fill(~there, -torch.inf)

    def _keys(self, samples: Samples, k: int, query_rows: Tensor | None) -> Tensor:
        """Keys [b, K] of the own samples' rows, the k nearest others among them."""
        if query_rows is not None:
            return self._row_keys(query_rows)
        at = samples.positions[samples.own] - self.first
        keys, incomplete = self._listed(at, k)
        counts = self._counts(int(incomplete.sum()))
        if sum(counts):
            rows = self._whole_rows(at[incomplete], counts)
            keys = torch.nn.functional.pad(keys, (0, rows.shape[1] - keys.shape[1]), value=NO_KEY)
            keys[incomplete] = self._row_keys(rows)
        return keys

    def _listed(self, at: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Keys [b, K] of what the rows list, and which of them do not tell the k nearest others."""
        columns, floors = self.lists.columns[at].long(), self.lists.floors[at]
        keys = keys_of(self.lists.values[at], columns).masked_fill(columns < 0, NO_KEY)
        others = self.lists.values[at].masked_fill(columns == (at + self.first)[:, None], -torch.inf)
        last = (
            others.topk(k, dim=1).values[:, -1]
            if others.shape[1] >= k
            else torch.full_like(floors, -torch.inf)
        )
        return keys, ~((last > floors) | (floors == -torch.inf))

    def _row_keys(self, rows: Tensor) -> Tensor:
        return keys_of(rows, torch.arange(rows.shape[1], device=rows.device).expand_as(rows))

    def _whole_rows(self, at: Tensor, counts: Sequence[int]) -> Tensor:
        """Products [m, n] of own rows with those of all processes, ``counts[r]`` of rank r; every process calls it."""
        rows = torch.cat(self.exchange.gather_rows(self.features[at], counts))
        products = row_products(rows, self.features)
        shapes = [(len(at), len(self.division.rows(rank))) for rank in range(self.division.size)]
        return torch.cat(self.exchange.send(list(products.split(list(counts))), shapes), dim=1)

    def _counts(self, own: int) -> list[int]:
        """The numbers of all processes."""
        return self.exchange.gather(torch.tensor([own], device=self.features.device)).flatten().tolist()

    def _walk(
        self,
        columns: Tensor,  # [b, K], the candidates of the own samples
        chunk: Tensor,  # int32 [B, w], the first of all
        counts: Tensor,  # int64 [B]
        min_rank: int,
        samples: Samples,
        aboard: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The positive candidates of all samples, (sample [E], column [E]) without their own images, in every process;
        and what all processes have sent of ``aboard``."""
        anchor, rank = chunk[:, 0], counts.clamp_min(min_rank)
        walking = (counts > 2) & (rank < self.division.n - 1)
        ranks = rank.clamp_max(self.division.n).to(torch.int32)
        position, width = torch.zeros_like(counts), 1
        batch, share = len(samples.positions), self.division.n // self.division.size
        most = max(1, min(CANDIDATES_AT_ONCE, PRODUCTS_AT_ONCE // max(batch * share, 1)))
        positives: list[Tensor] = []
        answers: list[Tensor] | None = None
        while bool((pending := position < counts).any()):
            if position.any():
                left = _Candidates(columns, counts[samples.own], counts)
                own = _next_ones(left, position[samples.own], chunk.shape[1])
                chunk = samples.of_owners(self.exchange.gather_rows(own, samples.counts))
            there = (chunk >= 0) & pending[:, None]
            asked = there & walking[:, None]
            verdicts, *told = self._ask(chunk, asked, anchor, ranks, () if answers is not None else aboard)
            answers = told if answers is None else answers
            untold = (verdicts == UNTOLD) & ((verdicts == INCONSISTENT).cumsum(1) == 0)
            untold &= untold.cumsum(1) <= width
            if bool(untold.any()):
                behind = self._by_products(chunk, anchor, ranks, untold)
                verdicts = verdicts.masked_fill(untold, CONSISTENT).masked_fill(behind, INCONSISTENT)
            reached = verdicts != CONSISTENT
            place = torch.where(reached.any(1), reached.to(torch.uint8).argmax(1), chunk.shape[1])
            ended = ((verdicts == INCONSISTENT) & (reached.cumsum(1) == 1)).any(1)
            after = (position + place).minimum(counts)
            after = torch.where(ended, after.clamp_min(2).minimum(counts), after)
            ahead = position[:, None] + torch.arange(chunk.shape[1], device=position.device)
            positive = there & (ahead < after[:, None]) & (chunk != samples.positions[:, None])
            sample, at = positive.nonzero().unbind(1)
            positives.append(torch.stack([sample, chunk[sample, at].long()]))
            counts = torch.where(pending & ended, after, counts)
            position = torch.where(pending, after, position)
            width = min(2 * width, most)  # who goes on will need many products
        if answers is None:
            answers = self.exchange.gather_all(aboard) if len(aboard) else []
        none = torch.zeros(2, 0, dtype=torch.int64, device=counts.device)
        sample, column = torch.cat([none, *positives], dim=1).unbind(0)
        return sample, column, answers

    def _ask(
        self, chunk: Tensor, asked: Tensor, anchor: Tensor, rank: Tensor, aboard: Sequence[Tensor]
    ) -> list[Tensor]:
        """Verdicts int8 [B, w] on the ``asked`` candidates, CONSISTENT on the others; ``aboard`` of all, [R, ...]."""
        if not bool(asked.any()):
            return [torch.zeros_like(chunk), *(self.exchange.gather_all(aboard) if len(aboard) else ())]
        local = chunk.long() - self.first
        sample, place = (asked & (local >= 0) & (local < len(self.features))).nonzero().unbind(1)
        own = torch.full(chunk.shape, ELSEWHERE, dtype=torch.int8, device=chunk.device)
        own[sample, place] = listed_ranks(
            *self.lists[:4], local[sample, place], anchor[sample].long(), rank[sample].long()
        )
        verdicts, *told = self.exchange.gather_all([own, *aboard])
        return [verdicts.amin(0).masked_fill(~asked, CONSISTENT), *told]

    def _by_products(self, chunk: Tensor, anchor: Tensor, rank: Tensor, untold: Tensor) -> Tensor:
        """Which of the ``untold`` candidates [B, w] are inconsistent; every process calls it."""
        sample, place = untold.nonzero().unbind(1)
        row, anchors = chunk[sample, place].long(), anchor[sample].long()
        distinct, inverse = row.unique(return_inverse=True)
        self.products += len(distinct)
        owners = Samples.of(distinct, self.exchange, self.division)
        rows = torch.cat(
            self.exchange.gather_rows(self.features[distinct[owners.own] - self.first], owners.counts)
        )
        products = row_products(rows, self.features)[inverse]
        local = anchors - self.first
        own = (local >= 0) & (local < len(self.features))
        bars = products.new_zeros(len(row))
        bars[own] = products[own, local[own]]
        bars = self.exchange.gather(bars).gather(0, self.division.owner(anchors)[None])[0]
        above = self.exchange.gather((products > bars[:, None]).sum(1)).sum(0)
        behind = torch.zeros_like(untold)
        behind[sample, place] = above > rank[sample]
        return behind


def _next_ones(found: _Candidates, position: Tensor, width: int) -> Tensor:
    """Candidates of the own samples from ``position`` [b] on, int32 [b, width], -1 behind the last."""
    ahead = position[:, None] + torch.arange(width, device=position.device)
    wide = torch.nn.functional.pad(found.columns, (0, 1), value=-1)
    chosen = wide.gather(1, ahead.clamp_max(found.columns.shape[1]))
    return chosen.masked_fill(ahead >= found.counts[:, None], -1).to(torch.int32)
