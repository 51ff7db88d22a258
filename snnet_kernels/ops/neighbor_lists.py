"""Building neighbour lists.

n images, d feature dimensions, K places per row. Operations take and return lists as tensors: columns int32 [n, K],
values float32 [n, K], counts int32 [n], floors float32 [n], and mirrors int32 [n, K], or [n, 0] on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, reference
from ..neighbor_list_layout import NeighborLists, mirrors_width
from .operation import LIBRARY, implement_on_cpu, operation


def _empty_tables(like: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = like.shape[0]
    return (
        like.new_empty(n, capacity, dtype=torch.int32),
        like.new_empty(n, capacity),
        like.new_empty(n, dtype=torch.int32),
        like.new_empty(n),
    )


@operation(
    lambda features, k, floor: (
        *_empty_tables(features, min(k, features.shape[0])),
        features.new_empty(features.shape[0]),
    )
)
def _neighbor_lists(features: Tensor, k: int, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lists, lowest = reference.lists_and_lowest(features, k, floor)
    return (*lists[:4], lowest)


# The CPU library makes lists a band of rows at a time. Between bands handlers of signals run, as a million images take
# minutes. What they raise comes out, which it would not if compiled code called Python.
LIBRARY.define(
    "take_band_(Tensor features, int first, float floor, Tensor(a!) columns, Tensor(b!) values, Tensor(c!) counts, "
    "Tensor(d!) floors, Tensor(e!) lowest) -> int"
)


def _lists_by_bands(features: Tensor, k: int, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    n = features.shape[0]
    features = features.contiguous()
    made = (*_empty_tables(features, min(k, n)), features.new_empty(n))
    first = 0
    while first < n:
        first = torch.ops.snnet.take_band_.default(features, first, floor, *made)
    return made


implement_on_cpu("neighbor_lists", _lists_by_bands, compiled="take_band_")


@operation(
    lambda columns, values, counts, floors, capacity: (
        *_empty_tables(values, capacity),
        values.new_empty(values.shape[0], mirrors_width(values.device, capacity), dtype=torch.int32),
    )
)
def symmetric_lists(
    columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Symmetric lists of ``capacity`` places per row, with the mirrors that their device needs."""
    made = reference.symmetric_lists(NeighborLists(columns, values, counts, floors), capacity)
    assert made.mirrors is not None
    return (*made[:4], made.mirrors[:, : mirrors_width(values.device, capacity)].clone())


def lists_and_lowest(features: Tensor, k: int, floor: float = -float("inf")) -> tuple[NeighborLists, Tensor]:
    """:func:`neighbor_lists` of checked float32 features, and the lowest similarity of each row, float32 [n].

    One product of the features gives both. The lowest similarity is defined for finite features.
    """
    *lists, lowest = _neighbor_lists(features, k, floor)
    return NeighborLists(*lists), lowest


def neighbor_lists(
    features: Tensor, k: int = 256, *, floor: float | None = None, symmetric: bool = False
) -> NeighborLists:
    """The ``k`` largest similarities of each row of ``features`` to all rows, exact, without holding n × n values.

    A row lists itself too, unless k others are at least as similar. Without ``symmetric``, entries are in descending
    order of similarity, ties by lower column. NaN is above nothing. Equals
    ``(features @ features.t()).sort(dim=1, descending=True, stable=True)`` in true float32, cut to the first k columns
    and to entries above ``floor``.

    :func:`update_memory_` can update ``symmetric`` lists: i lists l exactly if l lists i. Each row selects its k/2
    largest entries, so that updates find room. A pair is kept if at least one of its rows selects it and both have
    room.

    Args:
        features: [n, d], any floating type and strides.
        k: places per row, at most n.
        floor: list only similarities above it, for a threshold graph. A list is complete if at most k entries are above
            it. If there are more, the floor of this row is the largest similarity that is left out.
        symmetric: make symmetric lists, with ``mirrors``.

    Returns:
        NeighborLists: ``columns`` int32 [n, K], -1 after the last entry; ``values`` float32 [n, K], -inf there;
        ``counts`` int32 [n]; ``floors`` float32 [n]: every column with a larger similarity is listed.
    """
    k = checks.check_count("k", k)
    features = checks.check_matrix("features", features, "n", "d")
    features = checks.check_features("features", features, features.shape[1]).detach()
    above = -float("inf") if floor is None else checks.check_finite("floor", floor)
    if not checks.check_flag("symmetric", symmetric):
        return lists_and_lowest(features, k, above)[0]
    n = features.shape[0]
    width = min(k, n)
    filled = width if width == n else max(1, width // 2)
    nearest, _ = lists_and_lowest(features, max(1, filled), above)
    if n == 0:
        return nearest._replace(mirrors=nearest.columns.clone())
    return NeighborLists(*symmetric_lists(*nearest[:4], width))
