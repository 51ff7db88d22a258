"""Neighbours of the same camera and of the others, for the Jaccard graph, computed in tiles of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .similarity import float32_similarity

TILE_ENTRIES = 1 << 24  # similarities held at a time: 64 MB


def camera_lists(features: Tensor, cameras: Tensor, own: int, others: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest images of the same camera, int32 [n, own], and of the other cameras, [n, others], on the CPU.

    In descending order of similarity, ties by lower index; an image is in its own list. If there are too few images of
    one kind, the nearest of the other kind follow. Both are cut to n columns. Also the lowest similarity of each image,
    float32 [n].
    """
    found = []
    positions = torch.arange(len(features), device=features.device)
    for rows in positions.split(max(1, TILE_ENTRIES // len(features))):
        similarity = float32_similarity(features[rows], features)
        lists = reference.camera_lists(similarity, cameras[rows, None] == cameras, own, others)
        found.append((*lists, similarity.amin(1)))
    within, across, lowest = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return within, across, lowest
