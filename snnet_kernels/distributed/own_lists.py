"""The neighbour lists of the own rows of a memory that is divided over processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..ops.shard_lists import blend_rows_, follow_moved_rows_, insert_pairs_, remove_pairs_
from .exchange import Exchange, padded
from .prediction import Samples
from .products import row_products
from .rows import BLOCK, Division

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
        found = torch.cat(exchange.send_rows([packed[owner == rank] for rank in range(division.size)]))
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
    key, first_of = _distinct(
        torch.cat([pairs.row, mirrored.row]) * n + torch.cat([pairs.column, mirrored.column])
    )
    value = torch.cat([pairs.value, mirrored.value])[first_of]
    insert(lists, Pairs(key // n, key % n, value), exchange, division)
    return lists


def _take_largest(values: Tensor, columns: Tensor, features: Tensor, part: Tensor, first: int) -> None:
    """Keep the largest of what each row had [m, k] and of its products with ``part``, which stands at ``first``."""
    most = values.shape[1]
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        products = row_products(features[rows], part)
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


def _distinct(key: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys in rising order, and where each stands first."""
    distinct, inverse = key.unique(return_inverse=True)
    at = torch.arange(len(key), device=key.device)
    return distinct, torch.full_like(distinct, len(key)).scatter_reduce(0, inverse, at, "amin")


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
        self.own = division.rows(exchange.rank)

    def places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the positions ``index`` are own rows, and their places among these."""
        which = ((index >= self.own.start) & (index < self.own.stop)).nonzero().flatten()
        return which, index[which] - self.own.start

    def blended(self, index: Tensor, features: Tensor) -> Tensor:
        """What the own ones of the rows ``index`` (distinct) become, as it travels; nothing is written.

        Float32 [most, d + 2 + K]: the row, its length before the division (NaN where it is not to be written), its
        floor, and the columns that it lists, as bits; zeros behind the last. ``most`` a process owns.
        """
        assert self.lists is not None
        which, at = self.places(index)
        rows = self.memory[at]
        lengths = blend_rows_(rows, torch.arange(len(at), device=at.device), features[which], self.momentum)
        lists = self.lists
        packed = [rows, lengths[:, None], lists.floors[at, None], lists.columns[at].view(torch.float32)]
        counts = torch.bincount(self.division.owner(index), minlength=self.division.size)
        return padded(torch.cat(packed, dim=1), int(counts.max()))

    def write(self, index: Tensor, blended: Tensor) -> Moved:
        """Write the own ones of the rows ``index``, of what all processes have made, [R, most, d + 2 + K]."""
        found = Samples.of(index, self.exchange, self.division).of_owners(blended)
        which, at = self.places(index)
        d = self.memory.shape[1]
        self.memory.index_copy_(0, at, found[which, :d])
        kept = found[:, d].isfinite().nonzero().flatten()
        found = found[kept]
        return Moved(
            kept,
            index[kept],
            found[:, :d].contiguous(),
            found[:, d].contiguous(),
            found[:, d + 1].contiguous(),
            found[:, d + 2 :].contiguous().view(torch.int32),
        )


class Moved(NamedTuple):
    """The rows that an update has moved, of all processes, in order of the batch."""

    kept: Tensor  # int64 [m], which of the round's entries
    positions: Tensor  # int64 [m]
    rows: Tensor  # [m, d]
    lengths: Tensor  # [m], before the division
    floors: Tensor  # [m]
    columns: Tensor  # int32 [m, K], what each listed before


def update_(
    rows: UpdatedRows,
    index: Tensor,
    features: Tensor,
    similarity: Tensor | None,
    blended: Tensor | None = None,
) -> None:
    """The momentum update of all processes' batch (``index`` [B], ``features`` [B, d]) on the own rows and lists.

    ``similarity`` [B, m] is that of the features with the own rows before the update. ``blended`` is what all have made
    of the first of the :func:`batch_rounds`, if it has travelled already.
    """
    rounds = batch_rounds(index)
    if rows.lists is None or similarity is None:
        for entries in rounds:
            which, at = rows.places(index[entries])
            blend_rows_(rows.memory, at, features[entries[which]], rows.momentum)
        return
    if len(rounds) > 1:
        similarity = similarity.clone()
    for turn, entries in enumerate(rounds):
        if blended is None:
            blended = rows.exchange.gather(rows.blended(index[entries], features[entries]))
        moved = rows.write(index[entries], blended)
        blended = None
        _follow(rows, rows.lists, similarity[entries[moved.kept]], moved)
        later = torch.cat(rounds[turn + 1 :]) if turn + 1 < len(rounds) else entries[:0]
        _, own = rows.places(moved.positions)
        if len(later) and len(own):  # the later entries meet the memory as it is now
            similarity[later[:, None], own[None, :]] = row_products(features[later], rows.memory[own])


def batch_rounds(index: Tensor) -> list[Tensor]:
    """Entries [B] split so that no index comes twice in a part, earlier entries in earlier parts."""
    order = index.sort(stable=True).indices
    ordered = index[order]
    first = torch.searchsorted(ordered, ordered)
    turn = torch.empty_like(index)
    turn[order] = torch.arange(len(index), device=index.device) - first
    return [(turn == r).nonzero().flatten() for r in range(int(turn.max()) + 1)] if len(index) else []


def _follow(rows: UpdatedRows, lists: NeighborLists, similarity: Tensor, moved: Moved) -> None:
    """Bring the own lists up to rows that have moved."""
    start, tables = rows.own.start, lists[:4]
    of_moved = moved.rows, moved.positions, moved.floors, moved.lengths, moved.columns
    sample, column, value, fresh = follow_moved_rows_(
        rows.memory, start, *tables, similarity, *of_moved, rows.momentum
    )
    here = Pairs(column[fresh], moved.positions[sample[fresh]], value[fresh])
    counts = lists.counts + torch.bincount(here.row - start, minlength=len(lists.counts))
    overflows = bool((counts > lists.capacity).any())
    to_owners, overflows = _sent_pairs(
        rows, moved.positions, sample, column, value, lists.capacity, overflows
    )
    both = Pairs(*(torch.cat(parts) for parts in zip(to_owners, here, strict=True)))
    if overflows:
        insert(lists, both, rows.exchange, rows.division)
    else:
        insert_pairs_(*tables, both.row - start, both.column, both.value)


def _sent_pairs(
    rows: UpdatedRows, index: Tensor, sample: Tensor, column: Tensor, value: Tensor, capacity: int, full: bool
) -> tuple[Pairs, bool]:
    """What all processes have found for the own ones of the moved rows ``index`` [m], sent as (sample, column, value)
    by sample; and whether a row of any process has too many: one of these, or others of a rank that is ``full``.

    One exchange: how many pairs of each moved row there are goes to all in front, and behind it as many pairs, 8 bytes
    each, as there is room for; a second one where they are more. The room is what was needed last.
    """
    exchange, m = rows.exchange, len(index)
    owner = rows.division.owner(index)
    numbers = torch.bincount(sample, minlength=m).to(torch.int32)
    head = torch.cat([numbers, numbers.new_tensor([full])])
    pairs = torch.stack([column.to(torch.int32), value.view(torch.int32)], dim=1)
    parts = [pairs[owner[sample] == rank] for rank in range(exchange.size)]
    room = exchange.room_for_pairs
    blocks = [torch.cat([head, padded(part[:room], room).flatten()]) for part in parts]
    heads, bodies = zip(
        *(
            block.split([m + 1, 2 * room])
            for block in exchange.send(blocks, [(m + 1 + 2 * room,)] * exchange.size)
        ),
        strict=True,
    )
    numbers_of_all = torch.stack(heads)[:, :m].long()  # [R, m]
    own = owner == exchange.rank
    coming = numbers_of_all[:, own].sum(1).tolist()
    found = [body.view(room, 2)[:count] for body, count in zip(bodies, coming, strict=True)]
    most = int(
        numbers_of_all.new_zeros(exchange.size, exchange.size).index_add_(1, owner, numbers_of_all).max()
    )
    if most > room:
        shapes = [(max(count - room, 0), 2) for count in coming]
        rest = exchange.send([part[room:] for part in parts], shapes)
        found = [torch.cat(both) for both in zip(found, rest, strict=True)]
    exchange.room_for_pairs = most + most // 4
    row = torch.cat([index[own].repeat_interleave(numbers[own]) for numbers in numbers_of_all])
    columns, values = torch.cat(found).unbind(1)
    overflows = bool((numbers_of_all.sum(0) > capacity).any()) or any(bool(head[m]) for head in heads)
    return Pairs(row, columns.long(), values.contiguous().view(torch.float32)), overflows
