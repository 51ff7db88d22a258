"""k-reciprocal re-ranking (Zhong, Zheng, Cao and Li, CVPR 2017), exact and without a matrix of all pairs.

All images, queries first, then the gallery, are compared with one another: N = q + g of them, with
L2-normalised features. What is computed, step by step:

1. **Original distance.** ``D[i, j] = 2 - 2 s_ij``, the squared Euclidean distance, over the largest of its row:
   ``d[i, j] = D[i, j] / max_l D[i, l]`` (0 where that is 0).
2. **Neighbours.** ``N(i, k)``: the k + 1 images of the smallest ``d[i]``, which i itself is one of; equal ones by
   rising index. (The public numpy form leaves ties to an unstable sort.)
3. **Reciprocal neighbours.** ``R(i, k) = {j in N(i, k) : i in N(j, k)}``.
4. **Expansion.** ``R*(i)`` is ``R(i, k1)`` and every ``R(j, h)``, j in ``R(i, k1)``, that shares more than 2/3 of
   its members with ``R(i, k1)``; h is k1 / 2, halves rounded to even.
5. **Gaussian weights.** ``V[i, j] = exp(-d[i, j])`` for j in ``R*(i)``, else 0; then each row is divided by its sum.
6. **Local query expansion.** Each row of V becomes the mean of the rows of the image's k2 nearest, itself among
   them (k2 = 1: V stays).
7. **Jaccard distance.** ``1 - m / (2 - m)`` with ``m = Σ_l min(V[i, l], V[j, l])``: rows sum to 1, so the sum of
   the larger ones is 2 - m.
8. **Final distance.** ``(1 - λ) Jaccard + λ d[i, j]`` between query i and gallery image j.

Steps 1 and 2 are :func:`snnet_kernels.neighbor_lists`, whose products give the lowest similarity of each row too; V
is sparse. Beyond the result and a copy of the features this takes 30 MB for Market-1501; the usual dense form takes
6 GB.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snnet.checks import check_query_and_gallery, positive
from snnet.errors import UserError
from snnet_kernels import ops
from snnet_kernels.ops.similarity import float32_similarity

K1, K2, ORIGINAL_WEIGHT = 20, 6, 0.3  # of the paper's experiments
ROWS_AT_ONCE = 512  # of queries, whose similarities are computed


def rerank(
    query: Tensor,  # float32 [q, d], rows of norm 1
    gallery: Tensor,  # float32 [g, d], rows of norm 1, on the same device
    *,
    k1: int = K1,
    k2: int = K2,
    original_weight: float = ORIGINAL_WEIGHT,
) -> np.ndarray:
    """Distances float32 [q, g] after k-reciprocal re-ranking (Zhong et al., CVPR 2017), smaller is nearer.

    Exact, and without a matrix of all pairs: beyond the result and a copy of the features it takes 30 MB for
    Market-1501. The module's text defines what is computed, step by step; so does ``docs/method.md``.

    Args:
        query, gallery: the features of the images.
        k1, k2: neighbours that are compared, and those that are averaged over.
        original_weight: λ, the weight of the original distance, 0 to 1.

    Raises:
        UserError: an argument of a wrong shape or value.
    """
    check_query_and_gallery(query, gallery, "re-ranking compares directions", torch.float32)
    if not (len(query) and len(gallery)):
        raise UserError(
            f"query and gallery must have at least one image each, got {len(query)} and {len(gallery)}"
        )
    if not 0 <= original_weight <= 1:
        raise UserError(f"original_weight must be from 0 to 1, got {original_weight}")
    k1, k2 = positive(k1, "k1"), positive(k2, "k2")
    query, gallery = query.detach(), gallery.detach()
    features = torch.cat([query, gallery])
    # Neighbours that each step looks at, the image itself among them.
    forward, half, averaged = (min(k, len(features)) for k in (k1 + 1, round(k1 / 2) + 1, k2))
    lists, lowest = ops.lists_and_lowest(features, max(forward, averaged))
    nearest, largest = lists.columns.cpu(), 2 - 2 * lowest.cpu()
    similarity = torch.empty(len(query), len(gallery), dtype=torch.float32, device="cpu")
    for first in range(0, len(query), ROWS_AT_ONCE):
        rows = features[first : min(first + ROWS_AT_ONCE, len(query))]
        similarity[first : first + len(rows)] = float32_similarity(rows, features[len(query) :])  # as ranked
    means = nearest[:, :averaged] if k2 > 1 else None
    compared = nearest[:, :forward], half, largest, means
    ops.blend_jaccard_(similarity, features.cpu(), *compared, float(original_weight))
    return similarity.numpy()
