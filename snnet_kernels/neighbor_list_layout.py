"""How neighbour lists are kept: tables of fixed width, a row an image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NeighborLists(NamedTuple):
    """The upper part of every row of S = X Xᵀ: a row lists each column whose similarity is above the row's floor.

    A row i with c = ``counts[i]`` entries keeps them in its first c places, in no order that means something; the
    places behind are empty. An entry may also be at or below the floor; none above it is missing.

    With ``mirrors`` the lists are symmetric: i lists l exactly where l lists i, with the same value, and
    ``mirrors[i, j]`` is the place of i in the row ``columns[i, j]``.
    """

    columns: Tensor  # int32 [n, K], -1 in empty places
    values: Tensor  # float32 [n, K], -inf in empty places
    counts: Tensor  # int32 [n]
    floors: Tensor  # float32 [n], -inf where a row lists everything
    mirrors: Tensor | None = None  # int32 [n, K], -1 in empty places

    @property
    def capacity(self) -> int:
        """Entries K that a row has room for."""
        return self.columns.shape[1]
