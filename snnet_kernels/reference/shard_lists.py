"""The neighbour lists of the rows that one process owns: see :mod:`snnet_kernels.ops.shard_lists`.

Rows are counted from the first own one, columns from the first image of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..precision import matmul
from .memory_update import _blend_rows_, _may_rise
from .neighbor_lists import _rank_in_row

MOVED_NUMBERS = 2  # behind a moved row: its length before the division, and its floor


def blended_rows(
    memory: Tensor,
    first: int,
    columns: Tensor,
    floors: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor,
    most: int,
) -> Tensor:
    """What the own ones of the rows ``index`` become, [most, d + 2 + K]: the row, its length before the division (NaN
    where it is not to be written), its floor and the columns that it lists, as bits."""
    which = ((index >= first) & (index < first + len(memory))).nonzero().flatten()
    at = index[which] - first
    rows, lengths = memory[at], torch.full((len(at),), torch.nan, dtype=memory.dtype, device=memory.device)
    every = torch.arange(len(at), device=at.device)
    entries, found = _blend_rows_(rows, every, features[which].to(memory.dtype), every, momentum)
    lengths[entries] = found
    listed = columns[at].view(torch.float32)
    blended = rows.new_zeros(most, rows.shape[1] + MOVED_NUMBERS + columns.shape[1])
    blended[: len(at)] = torch.cat([rows, lengths[:, None], floors[at, None], listed], dim=1)
    return blended


def follow_moved_rows_(
    memory: Tensor,
    lists: NeighborLists,
    first: int,
    similarity: Tensor,
    blended: Tensor,
    index: Tensor,
    owner: Tensor,
    momentum: Tensor,
    room: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Own rows and lists follow those of all that have moved: see the operation."""
    ranks, d = len(blended), memory.shape[1]
    order = owner.sort(stable=True).indices
    place = torch.empty_like(owner)
    place[order] = torch.arange(len(owner), device=owner.device)
    counts = torch.bincount(owner, minlength=ranks)
    found = blended[owner, place - (counts.cumsum(0) - counts)[owner]]
    kept = found[:, d].isfinite().nonzero().flatten()
    found, positions = found[kept], index[kept]
    own = ((positions >= first) & (positions < first + len(memory))).nonzero().flatten()
    memory[positions[own] - first] = found[own, :d]
    sample, column, value, fresh = _followed(
        memory, first, lists, similarity[kept], found[:, :d].contiguous(), positions, found[:, d + 1],
        found[:, d], found[:, d + MOVED_NUMBERS :].contiguous().view(torch.int32), momentum,
    )  # fmt: skip
    new = column[fresh] - first, positions[sample[fresh]], value[fresh]
    row, other, similar = _with_room(lists, *new)
    entry = kept[sample]
    travelling = torch.stack([column.to(torch.int32), value.view(torch.int32)], dim=1)
    order = owner[entry].sort(stable=True).indices
    parts = travelling[order].split(torch.bincount(owner[entry], minlength=ranks).tolist())
    numbers = torch.bincount(entry, minlength=len(index)).to(torch.int32)
    blocks = numbers.new_zeros(ranks, len(index) + 1 + 2 * room)
    blocks[:, : len(index)], blocks[:, len(index)] = numbers, int(len(row) > 0)
    for block, part in zip(blocks, parts, strict=True):
        block[len(index) + 1 :][: 2 * len(part)] = part[:room].flatten()
    return blocks, travelling[order], row, other, similar


def _with_room(
    lists: NeighborLists, row: Tensor, column: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """List pairs while a row has places; the others."""
    order = row.sort(stable=True).indices
    row, column, value = row[order], column[order], value[order]
    place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row) + lists.counts[row]
    fits = place < lists.capacity
    lists.columns[row[fits], place[fits]] = column[fits].to(torch.int32)
    lists.values[row[fits], place[fits]] = value[fits]
    lists.counts.add_(torch.bincount(row[fits], minlength=len(lists.counts)))
    return row[~fits], column[~fits], value[~fits]


def moved_pairs(
    blocks: Tensor, rest: Tensor, index: Tensor, owner: Tensor, rank: int, first: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What has come for own rows, and how much there is: see the operation."""
    m, ranks = len(index), len(blocks)
    room = (blocks.shape[1] - m - 1) // 2
    numbers, own = blocks[:, :m].long(), owner == rank
    most = numbers.new_zeros(ranks, ranks).index_add_(1, owner, numbers).amax() if ranks else numbers.sum()
    overflows = (numbers.sum(0) > capacity).any() | (blocks[:, m] != 0).any()
    told = torch.stack([most, overflows.long()])
    none, coming = index[:0], numbers[:, own].sum(1).tolist()
    if len(rest) < sum(max(count - room, 0) for count in coming):
        return none, none, blocks.view(torch.float32).flatten()[:0], told
    row, found = [none], [rest[:0]]
    behind = rest.split([max(count - room, 0) for count in coming])
    for r, count in enumerate(coming):
        row.append(index[own].repeat_interleave(numbers[r, own]) - first)
        found += [blocks[r, m + 1 :].view(room, 2)[:count], behind[r]]
    columns, values = torch.cat(found).unbind(1)
    return torch.cat(row), columns.long(), values.contiguous().view(torch.float32), told


def _followed(
    memory: Tensor,
    first: int,
    lists: NeighborLists,
    similarity: Tensor,
    moved: Tensor,
    moved_index: Tensor,
    moved_floors: Tensor,
    lengths: Tensor,
    moved_columns: Tensor,
    momentum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pairs of moved rows that are decided here, and which of them are new to a row that did not move."""
    n, count, device = memory.shape[0], len(moved_index), memory.device
    place = moved_index - first
    own = (place >= 0) & (place < n)
    is_moved = torch.zeros(n, dtype=torch.bool, device=device)
    is_moved[place[own]] = True
    lists.columns[is_moved], lists.values[is_moved], lists.counts[is_moved] = -1, -torch.inf, 0
    # What the moved rows list of the own ones.
    sample, j = (moved_columns >= 0).nonzero().unbind(1)
    listed = moved_columns[sample, j].long() - first
    inside = (listed >= 0) & (listed < n)
    sample, listed = sample[inside], listed[inside]
    is_listed = torch.zeros(count, n, dtype=torch.bool, device=device)
    is_listed[sample, listed] = True
    still = ~is_moved[listed]
    sample, listed = sample[still], listed[still]
    at = lists.columns[listed] == moved_index[sample, None]
    if bool((~at.any(1)).any()):
        raise RuntimeError("lists must be symmetric, but a moved row lists one that does not list it")
    where = at.to(torch.uint8).argmax(1)
    before = lists.values[listed, where]
    followed = (momentum * before + (1 - momentum) * similarity[sample, listed]) / lengths[sample]
    afresh = (lengths <= momentum)[sample]
    followed[afresh] = (moved[sample[afresh]] * memory[listed[afresh]]).sum(1)
    lists.values[listed, where] = followed
    wanted = (followed > moved_floors[sample]) | (followed > lists.floors[listed])
    _erase(lists, listed[~wanted], where[~wanted])
    old = sample[wanted], listed[wanted] + first, followed[wanted]
    # Unlisted pairs that may have risen above a floor.
    rising = _may_rise(lists.floors, moved_floors, similarity, lengths, momentum) & ~is_listed & ~is_moved
    b, at = rising.nonzero().unbind(1)
    products = (moved[b] * memory[at]).sum(1)
    above = (products > moved_floors[b]) | (products > lists.floors[at])
    risen = b[above], at[above] + first, products[above]
    # Pairs of moved rows: the owner of the lower image decides for both, as another may round the product otherwise.
    among = matmul(moved, moved.t()).tril()
    among = among + among.tril(-1).t()
    lower = torch.minimum(moved_index[:, None], moved_index[None, :])
    both = (among > moved_floors[:, None]) | (among > moved_floors[None, :])
    both &= (lower >= first) & (lower < first + n)
    r, c = both.nonzero().unbind(1)
    parts = old, risen, (r, moved_index[c], among[r, c])
    fresh = torch.cat([torch.full_like(part[0], k == 1, dtype=torch.bool) for k, part in enumerate(parts)])
    found = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
    order = found[0].sort(stable=True).indices
    return (*(tensor[order] for tensor in found), fresh[order])  # type: ignore[return-value]


def _erase(lists: NeighborLists, row: Tensor, place: Tensor) -> None:
    """Take entries out of their rows; the others move up."""
    if not len(row):
        return
    lists.columns[row, place], lists.values[row, place] = -1, -torch.inf
    rows = row.unique()
    order = (lists.columns[rows] < 0).to(torch.uint8).sort(dim=1, stable=True).indices
    lists.columns[rows] = lists.columns[rows].gather(1, order)
    lists.values[rows] = lists.values[rows].gather(1, order)
    lists.counts[rows] = (lists.columns[rows] >= 0).sum(1, dtype=torch.int32)


def insert_pairs_(
    lists: NeighborLists, row: Tensor, column: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What is new to rows joins what they list; a row keeps the first K, the others come back: (row, column, value)."""
    if not len(row):
        return row, column, value
    rows = row.unique()
    kept, place = (lists.columns[rows] >= 0).nonzero().unbind(1)
    all_rows = torch.cat([rows[kept], row])
    all_columns = torch.cat([lists.columns[rows[kept], place].long(), column])
    all_values = torch.cat([lists.values[rows[kept], place], value])
    order = all_columns.sort().indices
    order = order[all_rows[order].sort(stable=True).indices]
    r, c, v = all_rows[order], all_columns[order], all_values[order]
    rank = _rank_in_row(r, c, v, lists.columns.shape[0])
    room = rank < lists.capacity
    lists.columns[rows], lists.values[rows] = -1, -torch.inf
    lists.columns[r[room], rank[room]] = c[room].to(torch.int32)
    lists.values[r[room], rank[room]] = v[room]
    lists.counts[rows] = (lists.columns[rows] >= 0).sum(1, dtype=torch.int32)
    return r[~room], c[~room], v[~room]


def remove_pairs_(lists: NeighborLists, row: Tensor, column: Tensor, value: Tensor) -> None:
    """Pairs that have no room on one of their sides leave the other, and raise the floors of both."""
    at = lists.columns[row] == column[:, None]
    there = at.any(1)
    _erase(lists, row[there], at[there].to(torch.uint8).argmax(1))
    lists.floors.scatter_reduce_(0, row, value, "amax")
