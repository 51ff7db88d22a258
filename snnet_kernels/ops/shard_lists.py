"""Neighbour lists of the rows that one process owns: what :mod:`snnet_kernels.distributed` does with them.

The rows [first, first + n) of a memory of more images; rows are counted from the first own one, columns and
``moved_index`` from the first image of all. The lists are symmetric over all processes: columns int32 [n, K], values
float32 [n, K], counts int32 [n], floors float32 [n], without mirrors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..checks import check_index_values
from ..neighbor_list_layout import NeighborLists
from .operation import operation

_LISTS = ("columns", "values", "counts", "floors")


def _candidates(
    columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, row: Tensor, *_: object
) -> Any:
    return (
        row.new_empty(row.shape[0], columns.shape[1], dtype=torch.int32),
        row.new_empty(row.shape),
        row.new_empty(row.shape),
        row.new_empty(row.shape, dtype=torch.bool),
    )


@operation(_candidates)
def listed_candidates(
    columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, row: Tensor, first: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the lists of own rows ``row`` int64 [m] tell of their images.

    Returns the columns above ``threshold`` int32 [m, K] by falling value, ties by lower column, -1 behind the last; how
    many they are, int64 [m]; the nearest other image int64 [m], -1 without one; and whether the list tells both, bool
    [m]. ``first`` is the image of row 0.
    """
    check_index_values("row", row, columns.shape[0])
    lists = NeighborLists(columns, values, counts, floors)
    return reference.listed_candidates(lists, row, first, threshold)


@operation(lambda columns, values, counts, floors, row, *_: row.new_empty(row.shape, dtype=torch.int8))
def listed_ranks(
    columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, row: Tensor, anchor: Tensor, rank: Tensor
) -> Tensor:
    """Whether more than ``rank`` int64 [m] images are more similar to ``row`` int64 [m] than ``anchor`` int64 [m] is:
    int8 [m], 0 or 1, and 2 where the list of the row does not tell."""
    check_index_values("row", row, columns.shape[0])
    return reference.listed_ranks(NeighborLists(columns, values, counts, floors), row, anchor, rank)


@operation(lambda memory, index, *_: memory.new_empty(index.shape), writes=("memory",))
def blend_rows_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor) -> Tensor:
    """memory[index] = normalize(α memory[index] + (1 − α) f) for distinct ``index`` int64 [m]: the lengths [m] before
    the division, NaN where a row is not written because its length is not finite."""
    check_index_values("index", index, memory.shape[0])
    return reference.blend_rows_(memory, index, features, momentum)


def _unknown_pairs(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return (
        like.new_empty(size, dtype=torch.int64),
        like.new_empty(size, dtype=torch.int64),
        like.new_empty(size, dtype=torch.float32),
    )


def _found_pairs(memory: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sample, column, value = _unknown_pairs(memory)
    return sample, column, value, torch.empty_like(sample, dtype=torch.bool)


@operation(_found_pairs, writes=_LISTS)
def follow_moved_rows_(
    memory: Tensor,
    first: int,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    similarity: Tensor,
    moved: Tensor,
    moved_index: Tensor,
    moved_floors: Tensor,
    lengths: Tensor,
    moved_columns: Tensor,
    momentum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The own side of a momentum update of m rows anywhere, whose new rows are ``moved`` [m, d].

    Brings what unmoved own rows list of the moved ones up to date and drops what has fallen below both floors; empties
    the own rows that moved. Returns every pair of a moved row and an own one above one of their floors: (sample in
    ``moved`` int64 [E], column int64 [E], value [E], whether it is new to a row that did not move, bool [E]).

    Args:
        similarity: of the features with the own rows before the update, [m, n].
        moved_index, moved_floors, lengths: position int64 [m], floor [m] and length before the division [m] of each.
        moved_columns: what each listed before the update, int32 [m, K], -1 where it is nothing.
    """
    return reference.follow_moved_rows_(
        memory, first, NeighborLists(columns, values, counts, floors), similarity, moved, moved_index,
        moved_floors, lengths, moved_columns, momentum,
    )  # fmt: skip


@operation(lambda columns, values, *_: _unknown_pairs(values), writes=_LISTS)
def insert_pairs_(
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    row: Tensor,
    column: Tensor,
    value: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Insert new pairs (``row``, ``column``, ``value``) [E] into the lists. A row keeps the first K by falling value,
    ties by lower column; what it does not keep, of these or of what it had, is returned in the same form."""
    check_index_values("row", row, columns.shape[0])
    return reference.insert_pairs_(NeighborLists(columns, values, counts, floors), row, column, value)


@operation(lambda *_: None, writes=_LISTS)
def remove_pairs_(
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    row: Tensor,
    column: Tensor,
    value: Tensor,
) -> None:
    """Pairs without room in one of their rows leave the other, where it lists them, and raise the floors of both."""
    check_index_values("row", row, columns.shape[0])
    reference.remove_pairs_(NeighborLists(columns, values, counts, floors), row, column, value)
