"""The neighbour lists of the own rows of a memory that is divided over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..ops.shard_lists import blend_rows_, follow_moved_rows_, insert_pairs_, remove_pairs_
from .exchange import Exchange
from .products import row_products
from .rows import BLOCK, Division

ROWS_AT_ONCE = 4 * BLOCK  # of another process's memory, while lists are built


class Pairs:
    """(row, column, value) of pairs on their way to the owners of their rows."""

    def __init__(self, row: Tensor, column: Tensor, value: Tensor) -> None:
        self.row, self.column, self.value = row, column, value

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
        row, column = (
            (products > values[rows, -1:]).nonzero().unbind(1)
        )  # a tie with a lower column stays behind
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


def update_(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor,
    lists: NeighborLists | None,
    similarity: Tensor | None,
    exchange: Exchange,
    division: Division,
) -> None:
    """The momentum update of all processes' batch (``index`` [B], ``features`` [B, d]) on the own rows and lists.

    ``similarity`` [B, m] is that of the features with the own rows before the update.
    """
    rounds = _rounds(index)
    if similarity is not None and len(rounds) > 1:
        similarity = similarity.clone()
    for turn, entries in enumerate(rounds):
        moved = _blend(memory, index[entries], features[entries], momentum, lists, exchange, division)
        if lists is None or similarity is None:
            continue
        moved_lists_(memory, lists, similarity[entries[moved.kept]], moved, momentum, exchange, division)
        later = torch.cat(rounds[turn + 1 :]) if turn + 1 < len(rounds) else entries[:0]
        start, stop = division.rows(exchange.rank).start, division.rows(exchange.rank).stop
        own = moved.index[(moved.index >= start) & (moved.index < stop)] - start
        if len(later) and len(own):  # the later entries meet the memory as it is now
            similarity[later[:, None], own[None, :]] = row_products(features[later], memory[own])


def _rounds(index: Tensor) -> list[Tensor]:
    """Entries [B] split so that no index comes twice in a part, earlier entries in earlier parts."""
    order = index.sort(stable=True).indices
    ordered = index[order]
    first = torch.searchsorted(ordered, ordered)
    turn = torch.empty_like(index)
    turn[order] = torch.arange(len(index), device=index.device) - first
    return [(turn == r).nonzero().flatten() for r in range(int(turn.max()) + 1)] if len(index) else []


class Moved:
    """The rows that an update has moved, of all processes, in order of the batch."""

    def __init__(
        self, kept: Tensor, index: Tensor, rows: Tensor, lengths: Tensor, floors: Tensor, columns: Tensor
    ):
        self.kept = kept  # which of the round's entries
        self.index, self.rows, self.lengths, self.floors, self.columns = index, rows, lengths, floors, columns


def _blend(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor,
    lists: NeighborLists | None,
    exchange: Exchange,
    division: Division,
) -> Moved:
    """Blend the own ones of the rows ``index`` (distinct), and learn what the others have become."""
    owner, start = division.owner(index), division.rows(exchange.rank).start
    own = (owner == exchange.rank).nonzero().flatten()
    at = index[own] - start
    lengths = blend_rows_(memory, at, features[own], momentum)
    if lists is None:
        empty = index[:0]
        return Moved(empty, empty, memory[:0], lengths[:0], lengths[:0], empty)
    packed = torch.cat(
        [
            memory[at],
            lengths[:, None],
            lists.floors[at, None],
            lists.columns[at].view(torch.float32),
        ],
        dim=1,
    )
    counts = torch.bincount(owner, minlength=division.size).tolist()
    blocks = torch.cat(exchange.gather_rows(packed, counts))
    order = owner.sort(stable=True).indices  # of the blocks: by owner, then as in the batch
    found = torch.empty_like(blocks)
    found[order] = blocks
    kept = found[:, memory.shape[1]].isfinite().nonzero().flatten()
    found, d = found[kept], memory.shape[1]
    return Moved(
        kept,
        index[kept],
        found[:, :d].contiguous(),
        found[:, d].contiguous(),
        found[:, d + 1].contiguous(),
        found[:, d + 2 :].contiguous().view(torch.int32),
    )


def moved_lists_(
    memory: Tensor,
    lists: NeighborLists,
    similarity: Tensor,
    moved: Moved,
    momentum: Tensor,
    exchange: Exchange,
    division: Division,
) -> None:
    """Bring the own lists up to rows that have moved."""
    start, tables = division.rows(exchange.rank).start, lists[:4]
    of_moved = moved.rows, moved.index, moved.floors, moved.lengths, moved.columns
    sample, column, value, fresh = follow_moved_rows_(memory, start, *tables, similarity, *of_moved, momentum)
    to_owners = Pairs(moved.index[sample], column, value).sent(exchange, division)
    here = Pairs(column[fresh], moved.index[sample[fresh]], value[fresh])
    both = [
        torch.cat([getattr(part, name) for part in (to_owners, here)]) for name in ("row", "column", "value")
    ]
    insert(lists, Pairs(*both), exchange, division)
