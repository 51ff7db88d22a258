"""What the Jaccard graph asks of all similarities beside neighbour lists, by tiles of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..reference.selection import ordered_topk
from .similarity import memory_similarity

TILE_ENTRIES = 1 << 24  # similarities held at a time: 64 MB


def lowest_similarities(features: Tensor) -> Tensor:
    """The lowest similarity of each row of ``features`` [n, d]: float32 [n]."""
    return torch.cat([similarity.amin(1) for _, similarity in _tiles(features)])


def camera_lists(features: Tensor, cameras: Tensor, own: int, others: int) -> tuple[Tensor, Tensor]:
    """The nearest images of the own camera, int32 [n, own], and of the other cameras, [n, others], on the CPU.

    By falling similarity, ties by lower index; an image is in its own camera. Where there are too few of one kind,
    the nearest of the other kind follow. Both are cut to n columns.
    """
    n = len(features)
    width = min(max(own, others), n)
    within, across = [], []
    for rows, similarity in _tiles(features):
        same = cameras[rows, None] == cameras
        found = []
        for kind in (same, ~same):
            values, columns = ordered_topk(similarity.masked_fill(~kind, -torch.inf), width)
            found.append((columns.to(torch.int32), values > -torch.inf))
        within.append(_one_after_the_other(*found[0], *found[1])[:, :own])
        across.append(_one_after_the_other(*found[1], *found[0])[:, :others])
    return torch.cat(within).cpu(), torch.cat(across).cpu()


def _one_after_the_other(first: Tensor, in_first: Tensor, second: Tensor, in_second: Tensor) -> Tensor:
    """The marked columns of ``first`` [rows, width] and behind them those of ``second``, cut to the width."""
    unmarked = torch.cat([~in_first, ~in_second], dim=1)
    order = unmarked.sort(dim=1, stable=True).indices[:, : first.shape[1]]
    return torch.cat([first, second], dim=1).gather(1, order)


def _tiles(features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of some rows, and their similarities with all."""
    positions = torch.arange(len(features), device=features.device)
    for rows in positions.split(max(1, TILE_ENTRIES // len(features))):
        yield rows, memory_similarity(features[rows], features)
