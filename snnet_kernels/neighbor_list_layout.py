"""The layout of neighbour lists: tables of fixed width, one row per image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NeighborLists(NamedTuple):
    """The largest entries of every row of S = X Xᵀ: a row lists each column whose similarity is above the row's floor.

    Row i has c = ``counts[i]`` entries in its first c places; the other places are empty. Their order is undefined,
    except that :func:`neighbor_lists` without ``symmetric`` sorts them. Entries at or below the floor may be listed; no
    entry above it is missing.

    With ``mirrors`` the lists are symmetric: i lists l exactly if l lists i, with the same value. ``mirrors[i, j]`` is
    then the place of i in row ``columns[i, j]``. GPU kernels need no mirrors: there they are int32 [n, 0].
    """

    columns: Tensor  # int32 [n, K], -1 in empty places
    values: Tensor  # float32 [n, K], -inf in empty places
    counts: Tensor  # int32 [n]
    floors: Tensor  # float32 [n], -inf if a row lists everything
    mirrors: Tensor | None = None  # int32 [n, K], -1 in empty places; [n, 0] on a GPU

    @property
    def capacity(self) -> int:
        """K, the number of places per row."""
        return self.columns.shape[1]


MIRRORED = {"cpu"}  # device types whose kernels use mirrors


def mirrors_width(device: torch.device, capacity: int) -> int:
    """Width of the mirrors of lists on ``device``."""
    return capacity if device.type in MIRRORED else 0


def with_mirrors(lists: NeighborLists) -> NeighborLists:
    """The same symmetric lists with the mirrors that their device needs, for example after a move to it."""
    columns, mirrors = lists.columns, lists.mirrors
    n, capacity = columns.shape
    if mirrors is not None and mirrors.shape == (n, mirrors_width(columns.device, capacity)):
        return lists
    if mirrors_width(columns.device, capacity) == 0:
        return lists._replace(mirrors=columns.new_empty(n, 0))
    return lists._replace(mirrors=_mirrors_of(columns))


def _mirrors_of(columns: Tensor) -> Tensor:
    """The mirrors of the lists with these ``columns`` [n, K], -1 also where an entry has none."""
    n = len(columns)
    row, place = (columns >= 0).nonzero().unbind(1)
    column = columns[row, place].long()
    key, order = (row * n + column).sort()
    mirrored = column * n + row
    at = torch.searchsorted(key, mirrored).clamp_max(max(len(key) - 1, 0))
    made = torch.full_like(columns, -1)
    made[row, place] = torch.where(key[at] == mirrored, place[order][at], -1).to(torch.int32)
    return made


def first_of_each(key: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys in rising order, and where each stands first."""
    distinct, inverse = key.unique(return_inverse=True)
    at = torch.arange(len(key), device=key.device)
    return distinct, torch.full_like(distinct, len(key)).scatter_reduce(0, inverse, at, "amin")


def are_symmetric(lists: NeighborLists) -> bool:
    """Whether the tables are symmetric lists in every respect but that no entry is missing; on any device."""
    columns, values, counts, floors, mirrors = lists
    if mirrors is None or columns.dim() != 2:
        return False
    n, capacity = columns.shape
    if mirrors.shape == (n, 0):
        mirrors = _mirrors_of(columns.clamp_max(n))
    types = {columns.dtype, counts.dtype, mirrors.dtype} | {values.dtype, floors.dtype}
    if types != {torch.int32, torch.float32} or columns.dtype != torch.int32 or values.dtype != torch.float32:
        return False
    if not (values.shape == mirrors.shape == columns.shape and counts.shape == floors.shape == (n,)):
        return False
    if bool(((counts < 0) | (counts > capacity)).any()):
        return False
    listed = torch.arange(capacity, device=columns.device) < counts[:, None]
    row, place = listed.nonzero().unbind(1)
    column, mirror = columns[row, place].long(), mirrors[row, place].long()
    if bool(((column < 0) | (column >= n) | (mirror < 0) | (mirror >= capacity)).any()):
        return False
    empty = (columns == -1) & (mirrors == -1) & (values == -torch.inf)
    return bool(
        (empty | listed).all()
        and (columns[column, mirror] == row).all()
        and (mirrors[column, mirror] == place).all()
        and (mirror < counts[column]).all()
        and (values[column, mirror] == values[row, place]).all()
    )
