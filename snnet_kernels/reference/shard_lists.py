"""The neighbour lists of the rows that one process owns: see :mod:`snnet_kernels.ops.shard_lists`.

Rows are counted from the first own one, columns from the first image of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..precision import matmul
from ..selection_keys import NO_KEY, columns_of, keys_of, values_of
from .list_labels import _ranks_behind
from .memory_update import SLACK, _blend_rows_
from .neighbor_lists import _rank_in_row

CONSISTENT, INCONSISTENT, UNTOLD = 0, 1, 2


def listed_candidates(
    lists: NeighborLists, row: Tensor, first: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Columns above the threshold in order, their number, the nearest other image, and whether the list tells both."""
    listed, values, floors = lists.columns[row].long(), lists.values[row], lists.floors[row]
    keys = keys_of(values, listed).masked_fill(listed < 0, NO_KEY)
    bar = torch.tensor(threshold, dtype=torch.float32, device=floors.device)
    above = keys.masked_fill(~(values > bar), NO_KEY).sort(dim=1, descending=True).values
    counts = (above > NO_KEY).sum(1)
    candidates = columns_of(above).masked_fill(above == NO_KEY, -1).to(torch.int32)
    nearest = keys.masked_fill(listed == (row + first)[:, None], NO_KEY).amax(1)
    largest = values_of(nearest).masked_fill(nearest == NO_KEY, -torch.inf)
    neighbor = columns_of(nearest).masked_fill(largest == -torch.inf, -1)
    told = ~(floors > bar) & ((largest > floors) | (floors == -torch.inf))
    return candidates, counts, neighbor, told


def listed_ranks(lists: NeighborLists, row: Tensor, anchor: Tensor, rank: Tensor) -> Tensor:
    """Whether more than ``rank`` [m] images are more similar to a row than its anchor is; UNTOLD where unknown."""
    behind, untold = _ranks_behind(lists, row, anchor, rank)
    return torch.where(untold, UNTOLD, behind.to(torch.int8)).to(torch.int8)


def blend_rows_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor) -> Tensor:
    """memory[index] <- normalize(α memory[index] + (1 − α) f) of distinct rows; lengths [m] before the division, NaN
    where a row is not written because its length is not finite."""
    found = torch.full((len(index),), torch.nan, dtype=memory.dtype, device=memory.device)
    entries, lengths = _blend_rows_(
        memory, index, features, torch.arange(len(index), device=index.device), momentum
    )
    found[entries] = lengths
    return found


def follow_moved_rows_(
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
    """The own side of an update: see the operation."""
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
    # Pairs of moved rows, of which the column is an own one.
    among = matmul(moved, moved.t()).tril()
    among = among + among.tril(-1).t()
    both = ((among > moved_floors[:, None]) | (among > moved_floors[None, :])) & own[None, :]
    r, c = both.nonzero().unbind(1)
    parts = old, risen, (r, moved_index[c], among[r, c])
    fresh = torch.cat([torch.full_like(part[0], k == 1, dtype=torch.bool) for k, part in enumerate(parts)])
    found = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
    order = found[0].sort(stable=True).indices
    return (*(tensor[order] for tensor in found), fresh[order])  # type: ignore[return-value]


def _may_rise(
    floors: Tensor, moved_floors: Tensor, similarity: Tensor, lengths: Tensor, momentum: Tensor
) -> Tensor:
    if momentum == 1.0:  # a row that was not of length 1 has moved without its feature: s tells nothing
        return ((lengths - 1).abs() > SLACK)[:, None].expand_as(similarity)
    gain, slack = ((lengths - momentum) / (1 - momentum))[:, None], SLACK / (1 - momentum)
    return (similarity > moved_floors[:, None] * gain - slack) | (similarity > floors[None, :] * gain - slack)


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
