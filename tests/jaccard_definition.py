"""The Jaccard distance of images taken literally, as :func:`snnet_kernels.jaccard_graph` says what it is."""

import numpy as np


def original_distances(similarity, relative):
    """Squared distances [n, n] of unit rows, float64; if ``relative``, over the largest of their row."""
    distance = 2 - 2 * similarity.astype(np.float64)
    if not relative:
        return distance
    largest = distance.max(axis=1, keepdims=True)
    return np.divide(distance, largest, out=np.zeros_like(distance), where=largest > 0)


def distances(similarity, k1, k2, searched=None, relative=False):
    """Jaccard distances [n, n] of similarities [n, n]: the sets of the equations, a dense V, float64.

    Of each image the ``searched`` nearest are known, itself among them: k1 by default.
    """
    n = len(similarity)
    distance = original_distances(similarity, relative)
    searched = k1 if searched is None else searched
    order = [
        sorted(range(n), key=lambda j, row=row: (row[j], j))[:searched] for row in -similarity.astype(float)
    ]

    def reciprocal(i, size):
        return {j for j in order[i][:size] if i in order[j][:size]}

    weights = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1 + 1)
        expanded = set(own)
        for j in own:
            others = reciprocal(j, round(k1 / 2) + 1)
            if len(own & others) > 2 / 3 * len(others):
                expanded |= others
        members = sorted(expanded)
        gaussian = np.exp(-distance[i, members])
        weights[i, members] = gaussian / gaussian.sum()
    if k2 != 1:
        weights = np.stack([weights[order[i][:k2]].mean(axis=0) for i in range(n)])
    overlap = np.array([np.minimum(row, weights).sum(axis=1) for row in weights])
    return np.maximum(1 - overlap / (2 - overlap), 0)
