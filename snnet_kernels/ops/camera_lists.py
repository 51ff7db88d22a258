"""What the Jaccard graph needs of all similarities besides neighbour lists, computed in tiles of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import reference
from .similarity import float32_similarity

TILE_ENTRIES = 1 << 24  # similarities held at a time: 64 MB


def lowest_similarities(features: Tensor) -> Tensor:
    """The lowest similarity of each row of ``features`` [n, d]: float32 [n]."""
    return torch.cat([similarity.amin(1) for _, similarity in _tiles(features)])


def camera_lists(features: Tensor, cameras: Tensor, own: int, others: int) -> tuple[Tensor, Tensor]:
    """The nearest images of the same camera, int32 [n, own], and of the other cameras, [n, others], on the CPU.

    In descending order of similarity, ties by lower index; an image is in its own list. If there are too few images of
    one kind, the nearest of the other kind follow. Both are cut to n columns.
    """
    found = [
        reference.camera_lists(similarity, cameras[rows, None] == cameras, own, others)
        for rows, similarity in _tiles(features)
    ]
    within, across = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return within, across


def _tiles(features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of some rows, and their similarities to all rows."""
    positions = torch.arange(len(features), device=features.device)
    for rows in positions.split(max(1, TILE_ENTRIES // len(features))):
        yield rows, float32_similarity(features[rows], features)
