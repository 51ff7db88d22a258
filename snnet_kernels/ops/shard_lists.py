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


@operation(
    lambda memory, first, columns, floors, index, features, momentum, most: memory.new_empty(
        most, memory.shape[1] + 2 + columns.shape[1]
    )
)
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
    """What an update makes of the own ones of the distinct rows ``index`` int64 [m], float32 [most, d + 2 + K].

    Of each the row normalize(α memory[index] + (1 − α) f); its length before the division, NaN where it keeps what it
    was because that is not finite; its floor; and the bits of the columns that it lists. Zeros behind the last.
    """
    return reference.blended_rows(memory, first, columns, floors, index, features, momentum, most)


def _unknown_pairs(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return (
        like.new_empty(size, dtype=torch.int64),
        like.new_empty(size, dtype=torch.int64),
        like.new_empty(size, dtype=torch.float32),
    )


def _followed(*given: Any) -> tuple[Tensor, ...]:
    blended, index, room = given[7], given[8], given[11]
    size = torch.library.get_ctx().new_dynamic_size()
    return (
        blended.new_empty(blended.shape[0], index.shape[0] + 1 + 2 * room, dtype=torch.int32),
        blended.new_empty(size, 2, dtype=torch.int32),
        *_unknown_pairs(blended),
    )


@operation(_followed, writes=("memory", *_LISTS))
def follow_moved_rows_(
    memory: Tensor,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    first: int,
    similarity: Tensor,
    blended: Tensor,
    index: Tensor,
    owner: Tensor,
    momentum: Tensor,
    room: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The own side of a momentum update of the distinct rows ``index`` int64 [m], whoever owns them.

    Writes the own ones of the rows. Brings what unmoved own rows list of the moved ones up to date, drops what has
    fallen below both floors, and lists what has risen above one of them while there is room; empties the lists of
    own rows that moved. Every pair of a moved row and an unmoved own one above one of their floors goes to the owner of
    the moved row. Of two moved rows the owner of the lower image decides, and tells the owners of both.

    Args:
        similarity: of the features with the own rows before the update, [m, n].
        blended: what each process has made of its rows, [R, most, d + 2 + K], see :func:`blended_rows`.
        owner: the process of each row, int64 [m].
        room: pairs that travel to each process in the first block.

    Returns:
        The block that goes to each process, int32 [R, m + 1 + 2 room]: how many pairs each moved row has, whether there
        are pairs without room here, and the first pairs for this process, (column, bits of the value). All pairs, int32
        [E, 2], by process and then by moved row. And (row, column, value) [F] that found no room in own rows.
    """
    lists = NeighborLists(columns, values, counts, floors)
    return reference.follow_moved_rows_(
        memory, lists, first, similarity, blended, index, owner, momentum, room
    )


@operation(
    lambda blocks, rest, index, *_: (
        *_unknown_pairs(blocks),
        index.new_empty(2),
    )
)
def moved_pairs(
    blocks: Tensor, rest: Tensor, index: Tensor, owner: Tensor, rank: int, first: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pairs that all processes have found for the own ones of the moved rows ``index`` int64 [m].

    Args:
        blocks: what each has sent to this process, int32 [R, m + 1 + 2 room], see :func:`follow_moved_rows_`.
        rest: what is behind the room of the blocks, int32 [E, 2], process by process; none where it has not come.
        owner: the process of each row, int64 [m]; ``rank`` is this one.

    Returns:
        (row, column, value) [P], none where the rest is missing; and int64 [2], which all know alike: the most pairs
        that one process has for another, and whether a row of any process has more than ``capacity`` or pairs without
        room.
    """
    return reference.moved_pairs(blocks, rest, index, owner, rank, first, capacity)


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
