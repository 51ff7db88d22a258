"""The nearest images of the own camera, and of the other cameras."""

from __future__ import annotations

import torch
from torch import Tensor

from .selection import ordered_topk


def camera_lists(similarity: Tensor, same: Tensor, own: int, others: int) -> tuple[Tensor, Tensor]:
    """The ``own`` nearest columns of each row [n] where ``same`` is set, and the ``others`` nearest elsewhere.

    int32 [rows, own] and [rows, others], by falling similarity, ties by lower column. Where there are too few of one
    kind, the nearest of the other kind follow. Both are cut to n columns.
    """
    width = min(max(own, others), similarity.shape[1])
    found = []
    for kind in (same, ~same):
        values, columns = ordered_topk(similarity.masked_fill(~kind, -torch.inf), width)
        found.append((columns.to(torch.int32), values > -torch.inf))
    near, far = found
    return _one_after_the_other(*near, *far)[:, :own], _one_after_the_other(*far, *near)[:, :others]


def _one_after_the_other(first: Tensor, in_first: Tensor, second: Tensor, in_second: Tensor) -> Tensor:
    """The marked columns of ``first`` [rows, width] and behind them those of ``second``, cut to the width."""
    unmarked = torch.cat([~in_first, ~in_second], dim=1)
    order = unmarked.sort(dim=1, stable=True).indices[:, : first.shape[1]]
    return torch.cat([first, second], dim=1).gather(1, order)
