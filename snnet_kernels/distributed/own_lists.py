"""The neighbour lists of the own rows of a memory that is divided over processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists, first_of_each
from ..ops.memory_update import update_memory_
from ..ops.shard_lists import blended_rows, follow_moved_rows_, insert_pairs_, moved_pairs, remove_pairs_
from ..ops.similarity import float32_similarity
from .exchange import Exchange
from .rows import BLOCK, Division, Samples

ROWS_AT_ONCE = 4 * BLOCK  # of another process's memory, while lists are built


class Pairs(NamedTuple):
    """(row, column, value) of pairs on their way to the owners of their rows."""

    row: Tensor
    column: Tensor
    value: Tensor

    def sent(self, exchange: Exchange, division: Division) -> Pairs:
        """Those that all ranks have for rows of this one, 12 bytes each."""
        owner = division.owner(self.row)
        packed = torch.stack(
            [self.row.to(torch.int32), self.column.to(torch.int32), self.value.view(torch.int32)], dim=1
        )
        found = exchange.send_rows([packed[owner == rank] for rank in range(division.size)])
        return Pairs(found[:, 0].long(), found[:, 1].long(), found[:, 2].contiguous().view(torch.float32))


def build_lists(
    features: Tensor, exchange: Exchange, division: Division, capacity: int, floor: float
) -> NeighborLists:
    """Symmetric lists of the own rows ``features`` [m, d]: those of :func:`snnet_kernels.neighbor_lists`.

    The rows of all processes come by, some at a time.
    """
    n, own = division.n, division.rows(exchange.rank)
    width = min(capacity, n)
    filled = width if width == n else max(1, width // 2)
    lowest = -torch.inf if width == n else floor
    values = features.new_full((len(own), filled + 1), -torch.inf)
    columns = torch.full((len(own), filled + 1), n, dtype=torch.int64, device=features.device)
    for rank in range(division.size):
        rows = division.rows(rank)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, len(rows) - first)
            part = exchange.broadcast(features[first : first + count], (count, features.shape[1]), rank)
            _take_largest(values, columns, features, part, rows.start + first)
    floors = torch.full((len(own),), lowest, dtype=torch.float64).to(values)
    listed = values[:, :filled] > floors[:, None]
    floors = floors.maximum(values[:, filled]) if filled < n else floors
    lists = NeighborLists(
        torch.full((len(own), width), -1, dtype=torch.int32, device=features.device),
        features.new_full((len(own), width), -torch.inf),
        torch.zeros(len(own), dtype=torch.int32, device=features.device),
        floors,
    )
    row, place = listed.nonzero().unbind(1)
    pairs = Pairs(row + own.start, columns[row, place], values[row, place])
    mirrored = Pairs(pairs.column, pairs.row, pairs.value).sent(exchange, division)
    # Products of (i, l) and (l, i) may be rounded apart on GPUs: where both rows list the pair, that of the lower one.
    is_lower = pairs.row < pairs.column
    parts = [
        Pairs(*(part[is_lower] for part in pairs)),
        mirrored,
        Pairs(*(part[~is_lower] for part in pairs)),
    ]
    both = Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))
    key, first_of = first_of_each(both.row * n + both.column)
    value = both.value[first_of]
    insert(lists, Pairs(key // n, key % n, value), exchange, division)
    return lists


def _take_largest(values: Tensor, columns: Tensor, features: Tensor, part: Tensor, first: int) -> None:
    """Keep the largest of what each row had [m, k] and of its products with ``part``, which stands at ``first``."""
    most = values.shape[1]
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        products = float32_similarity(features[rows], part)
        # A tie with a lower column stays behind.
        row, column = (products > values[rows, -1:]).nonzero().unbind(1)
        if not len(row):
            continue
        counts = torch.bincount(row, minlength=len(products))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        width = int(counts.max())
        found = products.new_full((len(products), most + width), -torch.inf)
        at = torch.full(found.shape, torch.iinfo(torch.int64).max, device=row.device)
        found[:, :most], at[:, :most] = values[rows], columns[rows]
        found[row, most + place], at[row, most + place] = products[row, column], column + first
        # What was there has lower columns: a stable sort leaves it before its equals.
        found, order = found.sort(dim=1, descending=True, stable=True)
        values[rows], columns[rows] = found[:, :most], at.gather(1, order)[:, :most]


def insert(lists: NeighborLists, pairs: Pairs, exchange: Exchange, division: Division) -> None:
    """List pairs that are new to own rows; what finds no room in a row leaves both, and raises floors."""
    start, tables = division.rows(exchange.rank).start, lists[:4]
    row, column, value = insert_pairs_(*tables, pairs.row - start, pairs.column, pairs.value)
    cut = Pairs(row + start, column, value)
    told = Pairs(cut.column, cut.row, cut.value).sent(exchange, division)
    for part in (cut, told):
        remove_pairs_(*tables, part.row - start, part.column, part.value)


class UpdatedRows:
    """The own rows of a memory in an update, and their lists, if they are to follow."""

    def __init__(
        self,
        memory: Tensor,
        lists: NeighborLists | None,
        momentum: Tensor,
        exchange: Exchange,
        division: Division,
    ) -> None:
        self.memory, self.lists, self.momentum = memory, lists, momentum
        self.exchange, self.division = exchange, division
        self.first = division.rows(exchange.rank).start

    def blended(self, samples: Samples, features: Tensor) -> Tensor:
        """What the own ones of the rows of ``samples`` (distinct) become, as it travels; nothing is written.

        Float32 [most, d + 2 + K], see :func:`.blended_rows`; ``most`` a process owns.
        """
        assert self.lists is not None
        of_lists, given = (self.lists.columns, self.lists.floors), (samples.positions, features)
        return blended_rows(self.memory, self.first, *of_lists, *given, self.momentum, samples.most)

    def follow_(self, samples: Samples, similarity: Tensor, blended: Tensor) -> None:
        """Write the own ones of the rows of ``samples`` (distinct), and bring the own lists up to all of them.

        ``blended`` [R, most, d + 2 + K] is what all processes have made of their rows.

        One exchange: how many pairs each moved row has goes to all in front, and behind it as many pairs as there is
        room for; a second one where they are more. The room is what was needed last.
        """
        assert self.lists is not None
        lists, exchange, room = self.lists, self.exchange, self.exchange.room_for_pairs
        of_rows, own = (samples.positions, samples.owner), (exchange.rank, self.first, lists.capacity)
        blocks, pairs, row, column, value = follow_moved_rows_(
            self.memory, *lists[:4], self.first, similarity, blended, *of_rows, self.momentum, room
        )
        once = [1] * exchange.size
        came = exchange.send(blocks, once, once)
        *arrived, told = moved_pairs(came, pairs[:0], *of_rows, *own)
        most, overflows = told.tolist()
        if most > room:
            *arrived, _ = moved_pairs(came, self._behind_room(samples, blocks, pairs, came), *of_rows, *own)
        exchange.room_for_pairs = most + most // 4
        if overflows:
            parts = zip(arrived, (row, column, value), strict=True)
            local, column, value = (torch.cat(both) for both in parts)
            insert(lists, Pairs(local + self.first, column, value), exchange, self.division)
        else:
            insert_pairs_(*lists[:4], *arrived)

    def _behind_room(self, samples: Samples, blocks: Tensor, pairs: Tensor, came: Tensor) -> Tensor:
        """The pairs int32 [E, 2] of all processes that did not fit into what ``came`` of their blocks."""
        size, room = self.exchange.size, self.exchange.room_for_pairs
        m, own = len(samples.positions), samples.owner == self.exchange.rank
        numbers = torch.zeros(size, dtype=torch.int32, device=blocks.device)
        numbers.index_add_(0, samples.owner, blocks[0, :m])
        parts = [part[room:] for part in pairs.split(numbers.tolist())]
        coming = [max(count - room, 0) for count in came[:, :m][:, own].sum(1).tolist()]
        return self.exchange.send(torch.cat(parts), [len(part) for part in parts], coming)


def update_(
    rows: UpdatedRows,
    samples: Samples,
    features: Tensor,
    similarity: Tensor | None,
    blended: Tensor | None = None,
) -> None:
    """The momentum update of all processes' ``samples`` with ``features`` [B, d] on the own rows and lists.

    ``similarity`` [B, m] is that of the features with the own rows before the update. ``blended`` is what all have made
    of the first of the rounds of the samples, if it has travelled already.
    """
    if rows.lists is None or similarity is None:
        update_memory_(rows.memory, samples.rows, features[samples.own], rows.momentum)
        return
    rounds = samples.rounds
    if len(rounds) > 1:
        similarity = similarity.clone()
    for turn, (entries, part) in enumerate(rounds):
        if blended is None:
            blended = rows.exchange.gather(rows.blended(part, features[entries]))
        rows.follow_(part, similarity[entries], blended)
        blended = None
        later, own = rounds[turn + 1 :], part.rows
        if len(later) and len(own):  # the later entries meet the memory as it is now
            at = torch.cat([entry for entry, _ in later if isinstance(entry, Tensor)])
            similarity[at[:, None], own[None, :]] = float32_similarity(features[at], rows.memory[own])
