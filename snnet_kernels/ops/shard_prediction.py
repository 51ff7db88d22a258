"""Labels of a batch from lists that are divided over processes: what each tells the others, and what follows of it.

The lists are those of the rows [first, first + n) of a memory of more images, see :mod:`.shard_lists`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..checks import check_index_values
from ..layout import label_bytes
from ..neighbor_list_layout import NeighborLists
from .operation import operation


@operation(
    lambda index, ends: (
        torch.empty_like(index),
        torch.empty_like(index),
        torch.empty_like(index),
        torch.empty_like(ends),
    )
)
def divided_samples(index: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Who works on the samples at ``index`` int64 [B], where the rows of process r end before ``ends[r]`` (int64 [R]).

    Returns the process of each sample; the samples by process, then as they come; the place of each in blocks of the
    most that a process has, a block for each process, one after the other: int64 [B]; and their numbers int64 [R].
    """
    return reference.divided_samples(index, ends)


@operation(lambda columns, values, counts, floors, row, first, threshold, places: row.new_empty(
    row.shape[0], 4 + places, dtype=torch.int32
))  # fmt: skip
def listed_candidates(
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    row: Tensor,
    first: int,
    threshold: float,
    places: int,
) -> Tensor:
    """What the lists of own rows ``row`` int64 [m] tell of their images, int32 [m, 4 + places].

    How many columns are above ``threshold``; the nearest other image, -1 without one; what the list does not tell, the
    sum of 1 for these columns and 2 for the nearest image; 0; and these columns by falling value, ties by lower column,
    -1 behind the last. ``first`` is the image of row 0, ``places`` at least K.
    """
    check_index_values("row", row, columns.shape[0])
    lists = NeighborLists(columns, values, counts, floors)
    return reference.listed_candidates(lists, row, first, threshold, places)


@operation(lambda columns, values, counts, floors, first, images, candidates, *_: torch.empty_like(
    candidates, dtype=torch.int8, memory_format=torch.contiguous_format
))  # fmt: skip
def listed_verdicts(
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    first: int,
    images: int,
    candidates: Tensor,
    anchor: Tensor,
    number: Tensor,
    min_rank: int,
) -> Tensor:
    """Whether the ``candidates`` int32 [B, w] of all samples, -1 where there is none, are inconsistent, as far as their
    rows are own ones: int8 [B, w], 0 or 1, 2 where the list of the row does not tell, 3 for all other candidates.

    One is inconsistent where more than max(``number``, ``min_rank``) images are more similar to it than the ``anchor``
    of its sample, both int32 [B]. Up to two candidates, and those of which no rank is so large, are not checked: 3.
    ``images`` are those of all processes.
    """
    lists = NeighborLists(columns, values, counts, floors)
    return reference.listed_verdicts(lists, first, images, candidates, anchor, number, min_rank)


def _walked(position: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return position.new_empty(size), position.new_empty(size), position.new_empty(2)


@operation(_walked, writes=("position", "ends"))
def walk_candidates_(
    position: Tensor, ends: Tensor, verdicts: Tensor, candidates: Tensor, index: Tensor, stops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Go on from ``position`` int64 [B] in the candidates of each sample: ``candidates`` int32 [B, w] come next.

    Up to ``ends`` int64 [B], or to the first that is inconsistent, but over two candidates at least, or to the first
    that is untold. ``position`` moves there, and where one is inconsistent the end too. Without ``stops`` nothing moves
    where one of the samples meets an untold one.

    Args:
        verdicts: what each process says of the candidates, int8 [R, B, w], see :func:`listed_verdicts`; the lowest
            counts.
        index: the samples' own images, int64 [B].

    Returns:
        The candidates that were passed but for the own images, sample and column int64 [E]; and int64 [2]: how many
        samples are not at their ends, and how many have met an untold candidate.
    """
    return reference.walk_candidates_(position, ends, verdicts, candidates, index, stops)


def _sets(
    sample: Tensor,
    column: Tensor,
    owner: Tensor,
    sizes: Tensor,
    entries: Tensor,
    neighbors: Tensor,
    told: Tensor,
    first: int,
    n: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = owner.shape[0]
    return (
        neighbors.new_empty(batch, label_bytes(n)),
        neighbors.new_empty(batch, label_bytes(n)),
        owner.new_empty(batch, 3),
        owner.new_empty(batch, 2, dtype=torch.int32),
    )


@operation(_sets)
def own_label_sets(
    sample: Tensor,
    column: Tensor,
    owner: Tensor,
    sizes: Tensor,
    entries: Tensor,
    neighbors: Tensor,
    told: Tensor,
    first: int,
    n: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The label sets of B samples in the n own columns from ``first`` on.

    Args:
        sample, column: the main positives, int64 [E].
        owner: the process that works on each sample, int64 [B].
        sizes: how many symmetric positives each has, int32 [B].
        entries: these, int32 [R, most]: in row r of the samples of process r, one after the other.
        neighbors: the own columns of the neighbours' labels, uint8 [B, label_bytes(n)].
        told: how many positives they have in the columns of each process, int32 [R, B].

    Returns:
        Main and symmetric labels uint8 [B, label_bytes(n)]; the positives of the three sets in all columns, int64
        [B, 3]; and how many own columns are positive in the main set and in the second, or the third, int32 [B, 2].
    """
    return reference.own_label_sets(sample, column, owner, sizes, entries, neighbors, told, first, n)
