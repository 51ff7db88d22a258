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

The product of the features is taken in blocks, each used for its rows and its columns, and only the nearest
of each image are kept; V is sparse. Beyond features and result that is about 180 MB for Market-1501, against
6 GB of the usual dense form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnet.checks import check_unit_rows, positive
from snnet.errors import UserError
from snnet.retrieval import reranking_numpy
from snnet.retrieval.compiled import native as _native
from snnet.retrieval.rank_metrics import default_threads
from snnet.system.progress import progress
from snnet_kernels import ops
from snnet_kernels.ops.similarity import float32_similarity

K1, K2, ORIGINAL_WEIGHT = 20, 6, 0.3  # of the paper's experiments

# Similarities held at a time: 64 MB in float32.
BLOCK_ENTRIES = 1 << 24

_steps: Any = reranking_numpy if _native is None else _native


def rerank(
    query: Tensor,  # float32 [q, d], rows of norm 1
    gallery: Tensor,  # float32 [g, d], rows of norm 1, on the same device
    *,
    k1: int = K1,
    k2: int = K2,
    original_weight: float = ORIGINAL_WEIGHT,
    threads: int | None = None,
) -> np.ndarray:
    """Distances float32 [q, g] after k-reciprocal re-ranking (Zhong et al., CVPR 2017), smaller is nearer.

    Exact, and without a matrix of all pairs: beyond the result it takes 180 MB for Market-1501. The module's
    text defines what is computed, step by step; so does ``docs/method.md``.

    Args:
        query, gallery: the features of the images.
        k1, k2: neighbours that are compared, and those that are averaged over.
        original_weight: λ, the weight of the original distance, 0 to 1.
        threads: at most this many in the search for neighbours; None: the CPUs this process may use, up to 16. The
            products and what follows run on the threads of torch. The result does not depend on them.

    Raises:
        UserError: an argument of a wrong shape or value.
    """
    _check(query, gallery, k1, k2, original_weight)
    threads = default_threads() if threads is None else positive(threads, "threads")
    features = torch.cat([query, gallery])
    # Neighbours that each step looks at, the image itself among them.
    forward, half, averaged = (min(k, len(features)) for k in (k1 + 1, round(k1 / 2) + 1, k2))
    nearest, lowest, similarity = _compare(features, len(query), max(forward, averaged), threads)
    largest = 2 - 2 * lowest
    code = ops.reciprocal_weights(nearest[:, :forward], None, half, features.cpu(), largest)
    if k2 > 1:
        code = ops.expand_query(*code, nearest[:, :averaged])
    ops.blend_jaccard_(similarity, *code, largest, float(original_weight))
    return similarity.numpy()


def _compare(features: Tensor, queries: int, count: int, threads: int) -> tuple[Tensor, Tensor, Tensor]:
    """One product of the features [N, d] with themselves, of which three things are kept.

    The ``count`` nearest of each image, int32 [N, count]; its lowest similarity, float32 [N]; the similarities
    of the queries with the gallery, float32 [q, g].
    """
    n = len(features)
    similarity = torch.empty(queries, n - queries)
    found = _steps.NearestRows(n, count)
    first = 0
    with progress(None, "re-ranking", total=n, unit="image") as bar:
        while first < n:
            # The upper triangle alone: the further down, the more rows fit into a block.
            rows = min(max(1, BLOCK_ENTRIES // (n - first)), n - first)
            block = float32_similarity(features[first : first + rows], features[first:]).cpu()
            found.merge(block.numpy(), first, threads)
            if first < queries:
                similarity[first : first + rows] = block[: queries - first, queries - first :]
            first += rows
            bar.update(rows)
    nearest, lowest = found.result()
    return torch.from_numpy(nearest), torch.from_numpy(lowest), similarity


def _check(query: Tensor, gallery: Tensor, k1: int, k2: int, original_weight: float) -> None:
    for name, features in (("query", query), ("gallery", gallery)):
        if features.dim() != 2 or len(features) == 0 or features.dtype != torch.float32:
            raise UserError(
                f"{name} must be float32 [images, d] with at least one image, got {features.dtype} "
                f"{list(features.shape)}"
            )
        check_unit_rows(name, features, "re-ranking compares directions")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query and gallery must have the same number of features, got {query.shape[1]} and {gallery.shape[1]}"
        )
    for name, value in (("k1", k1), ("k2", k2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be an integer of at least 1, got {value!r}")
    if not 0 <= original_weight <= 1:
        raise UserError(f"original_weight must be from 0 to 1, got {original_weight}")
