"""What the Jaccard graph needs of all similarities besides neighbour lists, computed in tiles of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import reference
from .similarity import memory_similarity

TILE_ENTRIES = 1 << 24  # similarities held at a time: 64 MB


def lowest_similarities(features: Tensor, queries: int = 0) -> tuple[Tensor, Tensor]:
    """The lowest similarity of each row of ``features`` [n, d]: float32 [n].

    And those of the first ``queries`` rows to all others, [queries, n - queries], which the same product has.
    """
    n, first = len(features), 0
    lowest = torch.full((n,), torch.inf, device=features.device)
    kept = torch.empty(queries, n - queries, device=features.device)
    while first < n:  # tiles of the upper triangle: the further down, the more rows fit into one
        rows = min(max(1, TILE_ENTRIES // (n - first)), n - first)
        tile = memory_similarity(features[first : first + rows], features[first:])
        lowest[first:] = lowest[first:].minimum(tile.amin(0))
        lowest[first : first + rows] = lowest[first : first + rows].minimum(tile.amin(1))
        if first < queries:
            kept[first : first + rows] = tile[: queries - first, queries - first :]
        first += rows
    return lowest, kept


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
        yield rows, memory_similarity(features[rows], features)
