"""k-reciprocal re-ranking at the size of Market-1501's test split, beside the usual form with dense matrices.

Both start from features. The dense form takes about a minute a call and 6 GB: this runs only where ``--size`` is
given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from snnet.retrieval.reranking import rerank

from ..case import Inputs, around, cluster_centers
from ..equality import require
from ..operation import Operation, called
from ..shapes import Shape, fixed
from .jaccard_graph import dense_jaccard

IDENTITIES = {"market-gallery": 750, "tiny-gallery": 20}
DENSE_MATRICES = 5  # of float32 [N, N] at the peak: distances, their order as int64 and int32, weights twice
PART = 2000  # images on which a form is tried before its time counts


# Without the gallery's junk, which is nobody's neighbour.
rerank_shapes = fixed(
    {"cpu": [Shape("market-gallery", 15_913, 512, 3_368)]},
    tiny=[Shape("tiny-gallery", 400, 64, 60)],
    asked=True,
)


class Features(NamedTuple):
    """Unit rows; the queries are the batch."""

    query: np.ndarray
    gallery: np.ndarray


class Images(Inputs):
    """Clusters, one an identity, so near to one another that neighbours are of several; a sixth are strays."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        rng = np.random.default_rng(0)
        centers = cluster_centers(rng, IDENTITIES[shape.size], shape.d)
        query = rng.integers(1, len(centers), shape.batch)
        gallery = rng.integers(1, len(centers), shape.n)
        gallery[: shape.n // 6] = 0
        self.batches = [Features(around(rng, centers, query, 2.5), around(rng, centers, gallery, 2.5))]


def dense_rerank(features: Features, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """As it is commonly written: matrices of all pairs, every row sorted, Python loops over the images."""
    queries, everything = len(features.query), np.concatenate(features)
    distance = 2 - 2 * (everything @ everything.T)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1).astype(np.int32)  # the image itself comes first
    jaccard = dense_jaccard(
        order[:, : k1 + 1], k2, k1 // 2 + 1, lambda image, others: distance[image, others], queries
    )
    return ((1 - weight) * jaccard + weight * distance[:queries])[:, queries:]


def gate(case: Images, batch: Features, form: Any) -> None:
    """``form`` is what was called: it is tried on a part of the images.

    A form of products rounds as it likes: where that swaps two neighbours of an image, its distances move.
    """
    step = max(1, (case.shape.n + case.shape.batch) // PART)
    part = Features(*(rows[::step].copy() for rows in batch))
    moved = float((np.abs(form(part) - dense_rerank(part)) > 1e-5).mean())
    require(moved <= 1e-3, f"distances: {100 * moved:.3g} % of them differ by more than 1e-5")


def ours(case: Images) -> Any:
    return lambda batch: rerank(*map(torch.from_numpy, batch))


def by_dense_matrices(case: Images) -> Any:
    case.check_room("the dense form", DENSE_MATRICES * 4 * (case.shape.n + case.shape.batch) ** 2)
    return dense_rerank


title = "k-reciprocal re-ranking"
reranked = Operation("rerank", title, gate, called, make_case=Images, shapes=rerank_shapes)
reranked.contender("snnet", ours)
reranked.contender("dense", by_dense_matrices, once=True)
OPERATIONS = (reranked,)
