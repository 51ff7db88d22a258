"""Neighbour lists: what the labels read of S = M Mᵀ, built by products.

A row lists every column above its floor φ. Lists that follow an update of the memory (:mod:`.memory_update`) are
symmetric: i lists l exactly where l lists i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists, first_of_each
from ..precision import matmul
from .selection import ordered_topk

TILE = 512  # rows and columns of a product at once


def neighbor_lists(features: Tensor, k: int, floor: float = -torch.inf) -> NeighborLists:
    """The ``k`` largest similarities above ``floor`` of each row of ``features`` [n, d], the row itself among them.

    By falling similarity, ties by lower column. NaN is above nothing.
    """
    return lists_and_lowest(features, k, floor)[0]


def lists_and_lowest(features: Tensor, k: int, floor: float = -torch.inf) -> tuple[NeighborLists, Tensor]:
    """:func:`neighbor_lists`, and the lowest similarity of each row [n], from the same products."""
    n = features.shape[0]
    width = min(k, n)
    values = features.new_empty(n, 0)
    columns = torch.zeros(n, 0, dtype=torch.int64, device=features.device)
    lowest = features.new_full((n,), torch.inf)
    lows = lowest.split(TILE)
    top = [(values[at : at + TILE], columns[at : at + TILE]) for at in range(0, n, TILE)]
    blocks = [features[at : at + TILE] for at in range(0, n, TILE)]
    for a, left in enumerate(
        blocks
    ):  # tiles of the upper triangle; each row meets its columns in rising order
        for b in range(a, len(blocks)):
            product = matmul(left, blocks[b].t())
            if a == b:
                product = product.tril() + product.tril(-1).t()
            top[a] = _keep_largest(*top[a], product, b * TILE, width + 1)
            lows[a].copy_(lows[a].minimum(product.amin(1)))
            if a != b:
                lows[b].copy_(lows[b].minimum(product.amin(0)))
                top[b] = _keep_largest(*top[b], product.t(), a * TILE, width + 1)
    if top:
        values, columns = (torch.cat(parts) for parts in zip(*top, strict=True))
    order = values.sort(dim=1, descending=True, stable=True).indices
    values, columns = values.gather(1, order), columns.gather(1, order)
    return _within_floor(values, columns, width, floor), lowest


def _keep_largest(
    values: Tensor, columns: Tensor, product: Tensor, first_column: int, most: int
) -> tuple[Tensor, Tensor]:
    """The ``most`` largest of a block's rows and of a product with later columns, in the order of the columns."""
    fresh = torch.arange(first_column, first_column + product.shape[1], device=product.device)
    values = torch.cat(
        [values, product.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)], dim=1
    )
    columns = torch.cat([columns, fresh.expand_as(product)], dim=1)
    values, places = ordered_topk(values, min(most, values.shape[1]))
    columns, order = columns.gather(1, places).sort(dim=1)
    return values.gather(1, order), columns


def _within_floor(values: Tensor, columns: Tensor, width: int, floor: float) -> NeighborLists:
    """Lists of the sorted ``values`` [n, >= width] that are above the floor; the first one left out raises it."""
    # By way of float64: a floor that no float32 reaches becomes infinite.
    floors = torch.full((values.shape[0],), floor, dtype=torch.float64, device=values.device).to(values.dtype)
    listed = values[:, :width] > floors[:, None]
    if values.shape[1] > width:
        floors = floors.maximum(values[:, width])
    return NeighborLists(
        columns[:, :width].masked_fill(~listed, -1).to(torch.int32),
        values[:, :width].masked_fill(~listed, -torch.inf),
        listed.sum(1, dtype=torch.int32),
        floors,
    )


def symmetric_lists(lists: NeighborLists, capacity: int) -> NeighborLists:
    """Symmetric lists with ``capacity`` places a row: a pair is kept where either row lists it and both have room.

    A row has room for the first ``capacity`` of its pairs by falling similarity, ties by lower column. A pair that is
    not kept raises the floors of both rows to its similarity.
    """
    n = lists.columns.shape[0]
    row, place = (lists.columns >= 0).nonzero().unbind(1)
    column, value = lists.columns[row, place].long(), lists.values[row, place]
    # Each pair twice, once from either side, whoever lists it.
    key = torch.cat([row * n + column, column * n + row])
    key, first = first_of_each(key)
    row, column, value = key // n, key % n, torch.cat([value, value])[first]
    rank = _rank_in_row(row, column, value, n)
    mirror = torch.searchsorted(key, column * n + row)
    kept = (rank < capacity) & (rank[mirror] < capacity)
    floors = lists.floors.scatter_reduce(0, row[~kept], value[~kept], "amax")
    row, column, value = row[kept], column[kept], value[kept]
    return _tables(row, column, value, floors, n, capacity)


def _rank_in_row(row: Tensor, column: Tensor, value: Tensor, n: int) -> Tensor:
    """The position of each entry in its row by falling value, ties by lower column; entries come by (row, column)."""
    order = value.sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]
    counts = torch.bincount(row, minlength=n)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    return rank


def _tables(
    row: Tensor, column: Tensor, value: Tensor, floors: Tensor, n: int, capacity: int
) -> NeighborLists:
    """Tables of symmetric entries that are sorted by (row, column)."""
    counts = torch.bincount(row, minlength=n)
    place = _rank_in_row(row, column, value, n)
    key = row * n + column
    mirror = place[torch.searchsorted(key, column * n + row)]
    shape = n, capacity
    columns = torch.full(shape, -1, dtype=torch.int32, device=row.device)
    mirrors = columns.clone()
    values = torch.full(shape, -torch.inf, dtype=value.dtype, device=row.device)
    columns[row, place], mirrors[row, place] = column.to(torch.int32), mirror.to(torch.int32)
    values[row, place] = value
    return NeighborLists(columns, values, counts.to(torch.int32), floors, mirrors)
