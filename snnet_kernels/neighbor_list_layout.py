"""How neighbour lists are kept: tables of fixed width, a row an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NeighborLists(NamedTuple):
    """The upper part of every row of S = X Xᵀ: a row lists each column whose similarity is above the row's floor.

    A row i with c = ``counts[i]`` entries keeps them in its first c places, in no order that means something; the
    places behind are empty. An entry may also be at or below the floor; none above it is missing.

    With ``mirrors`` the lists are symmetric: i lists l exactly where l lists i, with the same value, and
    ``mirrors[i, j]`` is the place of i in the row ``columns[i, j]``. The kernels of a GPU need none: there mirrors are
    int32 [n, 0].
    """

    columns: Tensor  # int32 [n, K], -1 in empty places
    values: Tensor  # float32 [n, K], -inf in empty places
    counts: Tensor  # int32 [n]
    floors: Tensor  # float32 [n], -inf where a row lists everything
    mirrors: Tensor | None = None  # int32 [n, K], -1 in empty places; [n, 0] on a GPU

    @property
    def capacity(self) -> int:
        """Entries K that a row has room for."""
        return self.columns.shape[1]


MIRRORED = {"cpu"}  # types of the devices whose kernels follow mirrors


def mirrors_width(device: torch.device, capacity: int) -> int:
    """Places a row of the mirrors that lists on ``device`` have."""
    return capacity if device.type in MIRRORED else 0


def with_mirrors(lists: NeighborLists) -> NeighborLists:
    """The same symmetric lists with the mirrors that their device needs, for instance after a move to it."""
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
