"""Labels and neighbours of the samples of a batch, from lists that are divided over processes.

A sample is worked on by the process that owns its image: candidates, anchor and neighbour stand in its own lists, and
it tells them to all. The process that owns a candidate tells all others whether it is cycle consistent. So every
process knows the labels of the whole batch after two exchanges, unless a sample has many candidates or lists do not
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..ops.shard_prediction import listed_candidates, listed_verdicts, walk_candidates_
from ..ops.similarity import float32_similarity
from ..selection_keys import NO_KEY, columns_of, key_of, keys_of, values_of
from .exchange import Exchange, padded
from .rows import Division, Samples

CANDIDATES_AT_ONCE = 32  # of a sample that are told, and asked about, in one exchange; or a multiple
MOST_AT_ONCE = 128
PRODUCTS_AT_ONCE = 2**24  # where lists do not tell
WHOLE_ROWS_AT_ONCE = 2**22  # entries of whole rows of a process, of some 60 bytes each
CONSISTENT, INCONSISTENT, UNTOLD, ELSEWHERE = 0, 1, 2, 3
# What stands at MISSING: the sum of what the list does not tell, or that the lists are not those of M.
NO_CANDIDATES, NO_NEIGHBOR, STALE = 1, 2, 4
NUMBER, NEIGHBOR, MISSING, SIZE, TOLD = range(5)  # what a process tells of a sample before its candidates


class Inquiry(NamedTuple):
    """What is asked of the label memory on the way."""

    sizes: Tensor  # int32 [b], entries that the owner of a sample tells all of
    entries: Tensor  # int32 [E], sample by sample
    tell: Callable[[Tensor], Tensor]  # of the neighbours [B] of all samples: what each process tells of them


class Predicted(NamedTuple):
    """Of all samples of the batch, in every process."""

    sample: Tensor  # int64 [E], the positives: places in the batch
    column: Tensor  # int64 [E], and images
    neighbor: Tensor  # int64 [B], -1 without one
    products: int  # rows that were multiplied
    sizes: Tensor  # int32 [B], of the inquiry
    # What all have told, [R, ...] each: entries that the inquiry is about, and what its ``tell`` gave.
    told: list[Tensor]


class Walk(NamedTuple):
    """What the candidates of all samples are checked against."""

    number: Tensor  # int32 [B], of candidates
    anchor: Tensor  # int32 [B]
    min_rank: int


class OwnRows:
    """The own rows of a memory with their lists, as prediction reads them."""

    def __init__(
        self, features: Tensor, lists: NeighborLists | None, exchange: Exchange, division: Division
    ) -> None:
        self.features, self._lists, self.exchange, self.division = features, lists, exchange, division
        self.first = division.first
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
        live: Tensor | None,
        *,
        stale: bool,
        look: Callable[[Tensor], None],
        inquiry: Inquiry | None = None,
    ) -> Predicted | None:
        """Labels as :func:`snnet_kernels.mplp` and the neighbour as :func:`snnet_kernels.nearest_neighbors` find them.

        ``live`` int64 [b, K], of :func:`sent_keys`, stands in the place of the own samples' rows of S. None where the
        lists of one of the processes are ``stale``. ``look`` gets the number of candidates of all samples, int32 [B],
        before these are checked.
        """
        self.products = 0
        told = self._told_candidates(samples, threshold, live, stale, inquiry)
        if told is None:
            return None
        found, rows, most, asked = told
        look(rows[:, NUMBER])
        neighbor, aboard = rows[:, NEIGHBOR].long(), list[Tensor]()
        if inquiry is not None:
            aboard = [padded(inquiry.entries, asked), inquiry.tell(neighbor)]
        sample, column, answers = self._walk(found, rows, most, min_rank, samples, aboard)
        every = torch.arange(len(samples.positions), device=sample.device)
        return Predicted(
            torch.cat([sample, every]),
            torch.cat([column, samples.positions]),
            neighbor,
            self.products,
            rows[:, SIZE],
            answers,
        )

    def _told_candidates(
        self,
        samples: Samples,
        threshold: float,
        live: Tensor | None,
        stale: bool,
        inquiry: Inquiry | None,
    ) -> tuple[Tensor, Tensor, int, int] | None:
        """The candidates of the own samples, int32 [b, 4 + K]; the first of those of all samples, int32 [B, 4 + w]; how
        many one has at most; and how much the inquiry of one process tells at most."""
        own, width = samples.positions[samples.own], max(self.exchange.candidates_told, CANDIDATES_AT_ONCE)
        if stale:
            found = torch.zeros(len(own), TOLD + width, dtype=torch.int32, device=own.device)
        elif live is not None:
            found = _row_candidates(own, live, threshold, width)
        else:
            places = max(self.lists.capacity, width)
            found = listed_candidates(*self.lists[:4], samples.rows, self.first, threshold, places)
        while True:
            if inquiry is not None:
                found[:, SIZE] = inquiry.sizes
            block = padded(found[:, : TOLD + width], samples.most)
            if stale:
                block[:, MISSING] = STALE  # where it owns no sample it says so too
            blocks = self.exchange.gather(block)
            if not samples.most:
                return found, blocks.flatten(0, 1), 0, 0
            heads = blocks[..., :TOLD]
            number, _, missing, _ = heads.amax((0, 1)).tolist()
            if missing == STALE:
                return None
            rows = samples.of_owners(blocks)
            if not missing:
                # What this batch would have taken at once.
                needed = -(-number // CANDIDATES_AT_ONCE) * CANDIDATES_AT_ONCE
                self.exchange.candidates_told = min(max(needed, CANDIDATES_AT_ONCE), MOST_AT_ONCE)
                return found, rows, number, 0 if inquiry is None else int(heads[..., SIZE].sum(1).max())
            counts = (heads[..., MISSING] > 0).sum(1).tolist()
            self.products += sum(counts)
            which = found[:, MISSING].nonzero().flatten()
            for part, products in self._whole_rows(samples.rows[which], counts):
                images = own[which[part]]
                made = _row_candidates(images, _telling_rows(products, images, threshold), threshold, width)
                made = made[:, : TOLD + int(made[:, NUMBER].max()) + width]
                wider = made.shape[1] - found.shape[1]
                found, made = (
                    torch.nn.functional.pad(table, (0, max(more, 0)), value=-1)
                    for table, more in ((found, wider), (made, -wider))
                )
                found[which[part]] = _completed(found[which[part]], made)

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
        at = samples.rows
        keys, incomplete = self._listed(at, k)
        counts = self._counts(int(incomplete.sum()))
        self.products += sum(counts)
        if sum(counts):
            which, width = (
                incomplete.nonzero().flatten(),
                min(k + 1, self.division.n),
            )  # the image itself among them
            keys = torch.nn.functional.pad(keys, (0, max(width - keys.shape[1], 0)), value=NO_KEY)
            keys[which] = NO_KEY
            for rows, products in self._whole_rows(at[which], counts):
                keys[which[rows], :width] = self._row_keys(products).topk(width, dim=1).values
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

    def _whole_rows(self, at: Tensor, counts: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
        """Products [m, n] of own rows with those of all processes, for some of ``at`` at a time.

        ``counts[r]`` are asked of rank r. Every process calls it, and takes all parts; one may have no rows.
        """
        step = max(1, WHOLE_ROWS_AT_ONCE // self.division.n)
        for first in range(0, max(counts), step):
            rows, part = slice(first, first + step), [min(max(count - first, 0), step) for count in counts]
            own = at[rows]
            everything = torch.cat(self.exchange.gather_rows(self.features[own], part))
            products = float32_similarity(everything, self.features).split(part)
            shapes = [(len(own), len(self.division.rows(rank))) for rank in range(self.division.size)]
            whole = torch.cat(self.exchange.send_parts(list(products), shapes), dim=1)
            if len(own):
                yield rows, whole

    def _counts(self, own: int) -> list[int]:
        """The numbers of all processes."""
        return self.exchange.gather(torch.tensor([own], device=self.features.device)).flatten().tolist()

    def _walk(
        self,
        found: Tensor,  # int32 [b, 4 + K], the candidates of the own samples
        rows: Tensor,  # int32 [B, 4 + w], the first of all
        most: int,  # candidates of a sample
        min_rank: int,
        samples: Samples,
        aboard: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The positive candidates of all samples, (sample [E], column [E]) without their own images, in every process;
        and what all processes have sent of ``aboard``."""
        number, chunk = rows[:, NUMBER], rows[:, TOLD:]
        walk = Walk(number, chunk[:, 0], min_rank)
        position, ends = torch.zeros(len(rows), dtype=torch.int64, device=rows.device), number.long()
        batch, share = len(rows), self.division.n // self.division.size
        at_once, width = max(1, min(CANDIDATES_AT_ONCE, PRODUCTS_AT_ONCE // max(batch * share, 1))), 1
        positives = []
        verdicts, *answers = self._ask(walk, chunk, self._is_any_checked(walk, most), aboard)
        while True:
            *passed, counts = walk_candidates_(position, ends, verdicts, chunk, samples.positions, False)
            left, untold = counts.tolist()
            if untold:
                verdicts = self._resolved(walk, chunk, verdicts.amin(0), position < ends, width)[None]
                *passed, counts = walk_candidates_(position, ends, verdicts, chunk, samples.positions, True)
                left = int(counts[0])
            positives.append((passed[0], passed[1]))
            if not left:
                break
            width = min(2 * width, at_once)  # who goes on will need many products
            own = _next_ones(found, ends[samples.own], position[samples.own], chunk.shape[1])
            chunk = samples.of_owners(self.exchange.gather(padded(own, samples.most)))
            (verdicts,) = self._ask(walk, chunk, self._is_any_checked(walk, most, position < ends), ())
        sample, column = (torch.cat(parts) for parts in zip(*positives, strict=True))
        return sample, column, answers

    def _is_any_checked(self, walk: Walk, most: int, left: Tensor | None = None) -> bool:
        """Whether candidates of a sample (that is ``left``) must be checked, of which one has ``most``."""
        limit = self.division.n - 1
        if most <= 2 or walk.min_rank >= limit:
            return False
        if left is None and most < limit:
            return True
        checked = (walk.number > 2) & (walk.number < limit)
        return bool((checked if left is None else checked & left).any())

    def _ask(self, walk: Walk, chunk: Tensor, is_asked: bool, aboard: Sequence[Tensor]) -> list[Tensor]:
        """Verdicts int8 [R, B, w] on candidates int32 [B, w], ELSEWHERE where none is needed; ``aboard`` of all."""
        if not is_asked:
            told = self.exchange.gather_all(aboard) if len(aboard) else []
            return [torch.full((1, *chunk.shape), ELSEWHERE, dtype=torch.int8, device=chunk.device), *told]
        own = listed_verdicts(
            *self.lists[:4], self.first, self.division.n, chunk, walk.anchor, walk.number, walk.min_rank
        )
        return self.exchange.gather_all([own, *aboard])

    def _resolved(self, walk: Walk, chunk: Tensor, verdicts: Tensor, left: Tensor, width: int) -> Tensor:
        """The same with the first ``width`` of each sample that lists do not tell and that the walk may reach."""
        untold = (verdicts == UNTOLD) & ((verdicts == INCONSISTENT).cumsum(1) == 0) & left[:, None]
        untold &= untold.cumsum(1) <= width
        rank = walk.number.clamp(walk.min_rank, self.division.n)
        behind = self._by_products(chunk, walk.anchor, rank, untold)
        return verdicts.masked_fill(untold, CONSISTENT).masked_fill(behind, INCONSISTENT)

    def _by_products(self, chunk: Tensor, anchor: Tensor, rank: Tensor, untold: Tensor) -> Tensor:
        """Which of the ``untold`` candidates [B, w] are inconsistent; every process calls it."""
        sample, place = untold.nonzero().unbind(1)
        row, anchors = chunk[sample, place].long(), anchor[sample].long()
        distinct, inverse = row.unique(return_inverse=True)
        self.products += len(distinct)
        owners = Samples(distinct, self.division)
        rows = torch.cat(self.exchange.gather_rows(self.features[owners.rows], owners.counts))
        products = float32_similarity(rows, self.features)[inverse]
        local = anchors - self.first
        own = (local >= 0) & (local < len(self.features))
        bars = products.new_zeros(len(row))
        bars[own] = products[own, local[own]]
        bars = self.exchange.gather(bars).gather(0, self.division.owner(anchors)[None])[0]
        above = self.exchange.gather((products > bars[:, None]).sum(1)).sum(0)
        behind = torch.zeros_like(untold)
        behind[sample, place] = above > rank[sample]
        return behind


def sent_keys(
    values: Tensor, first: int, part: slice, samples: Samples, threshold: float, exchange: Exchange
) -> Tensor:
    """Of s, of which each process has some rows or columns, what tells candidates and neighbour of the own samples.

    ``values`` [m, w] are those of the ``part`` of the batch with the columns from ``first`` on. Returns the keys int64
    [b, K] of each own sample from the highest on, NO_KEY behind the last: those above the threshold, and the highest of
    another image that each process has.
    """
    keys, counts = _telling_keys(values, samples.positions[part], threshold, first)
    owner = samples.owner[part].repeat_interleave(counts)
    number = torch.zeros_like(samples.positions, dtype=torch.int32)
    number[part] = counts.to(torch.int32)
    coming = exchange.gather(number)[:, samples.own]
    going = torch.bincount(owner, minlength=exchange.size).tolist()
    found = exchange.send(keys[owner.argsort(stable=True)], going, coming.sum(1).tolist())
    own = torch.arange(len(samples.own), device=found.device).repeat(exchange.size)
    return _in_rows(found, own.repeat_interleave(coming.flatten()), len(samples.own))


def _telling_keys(values: Tensor, images: Tensor, threshold: float, first: int) -> tuple[Tensor, Tensor]:
    """Keys int64 [E] of the entries of rows of s, [m, w], that are above the threshold, and of the highest one of
    another image than the row's own in ``images`` [m], row by row; and how many each row has, int64 [m]."""
    keys, counts, width = list[Tensor](), list[Tensor](), values.shape[1]
    step = max(1, WHOLE_ROWS_AT_ONCE // max(1, width))
    for rows, own in zip(values.split(step), images.split(step), strict=True):
        chosen = rows > threshold
        if width:
            is_own = torch.arange(first, first + width, device=rows.device) == own[:, None]
            highest = rows.masked_fill(is_own, -torch.inf).argmax(1, keepdim=True)  # NaN before all others
            chosen.scatter_(1, highest, True)
        row, column = chosen.nonzero().unbind(1)
        keys.append(keys_of(rows[row, column], column + first))
        counts.append(chosen.sum(1))
    return torch.cat(keys), torch.cat(counts)


def _telling_rows(rows: Tensor, images: Tensor, threshold: float) -> Tensor:
    """As :func:`sent_keys`, of whole rows [m, n] of s that this process has."""
    keys, counts = _telling_keys(rows, images, threshold, 0)
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    return _in_rows(keys, row, len(rows))


def _in_rows(keys: Tensor, row: Tensor, m: int) -> Tensor:
    """The ``keys`` [E] of ``m`` rows, each row from its highest on, NO_KEY behind its last: [m, K], K at least 1."""
    keys, order = keys.sort(descending=True)
    row, by_row = row[order].sort(stable=True)
    counts = torch.bincount(row, minlength=m)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = keys.new_full((m, max([1, *counts.tolist()])), NO_KEY)
    table[row, place] = keys[by_row]
    return table


def _row_candidates(own: Tensor, keys: Tensor, threshold: float, width: int) -> Tensor:
    """What lists would tell of the images ``own`` [m], int32 [m, 4 + K + width], from the ``keys`` [m, K] of their rows
    of s, as :func:`sent_keys` gives them."""
    columns = columns_of(keys)
    there = (columns != own[:, None]) & (keys > key_of(-torch.inf, 0))
    place = there.to(torch.uint8).argmax(1, keepdim=True)
    neighbor = torch.where(there.any(1), columns.gather(1, place).squeeze(1), -1)
    bar, nan = key_of(threshold, 0), key_of(torch.inf, 0)  # the highest keys of these values
    if bool((keys > nan).any()):  # NaN, which is above nothing, comes first
        keys = keys.masked_fill(keys > nan, NO_KEY).sort(dim=1, descending=True).values
        columns = columns_of(keys)
    above = keys > bar
    nothing = torch.zeros_like(neighbor)
    head = torch.stack([above.sum(1), neighbor, nothing, nothing], dim=1)
    candidates = torch.nn.functional.pad(columns.masked_fill(~above, -1), (0, width), value=-1)
    return torch.cat([head, candidates], dim=1).to(torch.int32)


def _completed(told: Tensor, made: Tensor) -> Tensor:
    """What lists have ``told`` [m, 4 + K], and in place of what they have not what products have ``made`` [m, 4 + K].

    Products may differ in their last bits from what a list has followed: as in one process, what it tells counts.
    """
    missing = told[:, MISSING]
    found = torch.where(((missing & NO_CANDIDATES) > 0)[:, None], made, told)
    found[:, NEIGHBOR] = torch.where((missing & NO_NEIGHBOR) > 0, made[:, NEIGHBOR], told[:, NEIGHBOR])
    found[:, MISSING] = 0
    return found


def _next_ones(found: Tensor, ends: Tensor, position: Tensor, width: int) -> Tensor:
    """Candidates of the own samples from ``position`` [b] up to ``ends`` [b], int32 [b, width], -1 behind the last."""
    ahead = position[:, None] + torch.arange(width, device=position.device)
    chosen = found.gather(1, (TOLD + ahead).clamp_max(found.shape[1] - 1))
    return chosen.masked_fill(ahead >= ends[:, None], -1)
