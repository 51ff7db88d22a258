"""The Jaccard distance as clustering trainers compute it: dense matrices of all pairs, loops over images in Python."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def faiss_neighbors(features: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of each image by faiss, int64 [n, k]."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)
    return index.search(features, k)[1]


def sorted_neighbors(features: np.ndarray, k: int) -> np.ndarray:
    """The same by a stable sort of all similarities: what the gate goes by."""
    return np.argsort(-(features @ features.T), axis=1, kind="stable")[:, :k]


def dense_jaccard(features: Tensor, nearest: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Distances float32 [n, n] of images whose ``nearest`` [n, k1] are known, as cluster-contrast defines them."""
    n, half = len(features), round(k1 / 2) + 1

    def mutual(image: int, size: int) -> np.ndarray:
        own = nearest[image, :size]
        return own[(nearest[own, :size] == image).any(axis=1)]

    full = [mutual(image, k1) for image in range(n)]
    halves = [mutual(image, half) for image in range(n)]
    code = np.zeros((n, n), np.float32)
    for image, own in enumerate(full):
        sets = [halves[other] for other in own]
        joined = [part for part in sets if 3 * len(np.intersect1d(part, own)) > 2 * len(part)]
        members = np.unique(np.concatenate([own, *joined]))
        distance = 2 - 2 * (features[image] @ features[members].t())
        code[image, members] = torch.softmax(-distance, 0).numpy()
    if k2 > 1:
        averaged = np.empty_like(code)
        for image in range(n):
            averaged[image] = code[nearest[image, :k2]].mean(axis=0)
        code = averaged
    having = [np.flatnonzero(code[:, column]) for column in range(n)]
    distances = np.empty((n, n), np.float32)
    for image in range(n):
        overlap = np.zeros(n, np.float32)
        for column in np.flatnonzero(code[image]):
            rows = having[column]
            overlap[rows] += np.minimum(code[image, column], code[rows, column])
        distances[image] = 1 - overlap / (2 - overlap)
    return distances.clip(min=0)
