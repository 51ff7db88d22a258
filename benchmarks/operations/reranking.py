"""k-reciprocal re-ranking at the size of Market-1501's test split, beside the usual form with dense matrices.

Both start from features. The dense form takes about a minute a call and 6 GB: this runs only where ``--size`` is
given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from snnet.retrieval import reranking
from snnet.retrieval.reranking import rerank
from snnet_kernels.memory_size import free_memory

from ..case import Inputs, Unavailable
from ..equality import Unequal
from ..operation import Operation
from ..shapes import Shape
from .rank_metrics import answering

IDENTITIES = {"market-gallery": 750, "tiny-gallery": 20}
DENSE_MATRICES = 5  # of float32 [N, N] at the peak: distances, their order as int64 and int32, weights twice
PART = 2000  # images on which a form is tried before its time counts


def rerank_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    """Only where a size is asked for; without the gallery's junk, which is nobody's neighbour."""
    if device != "cpu" or not sizes:
        return []
    if list(sizes) == ["tiny"]:
        return [Shape("tiny-gallery", 400, 64, 60)]
    return [Shape("market-gallery", 15_913, 512, 3_368)]


class Features(NamedTuple):
    """Unit rows; the queries are the batch."""

    query: np.ndarray
    gallery: np.ndarray

    @property
    def size(self) -> int:
        return len(self.query)

    def every(self, step: int) -> Features:
        return Features(self.query[::step].copy(), self.gallery[::step].copy())

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return torch.from_numpy(self.query), torch.from_numpy(self.gallery)


class Images(Inputs):
    """Clusters, one an identity, so near to one another that neighbours are of several; a sixth are strays."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        rng = np.random.default_rng(0)
        centers = rng.standard_normal((IDENTITIES[shape.size] + 1, shape.d), dtype=np.float32)
        centers[0] = 0

        def features(pids: np.ndarray) -> np.ndarray:
            drawn = centers[pids] + 2.5 * rng.standard_normal((len(pids), shape.d), dtype=np.float32)
            return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

        query = rng.integers(1, len(centers), shape.batch)
        gallery = rng.integers(1, len(centers), shape.n)
        gallery[: shape.n // 6] = 0
        self.batches = [Features(features(query), features(gallery))] * 2


def dense_rerank(features: Features, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """As it is commonly written: matrices of all pairs, every row sorted, Python loops over the images."""
    everything = np.concatenate([features.query, features.gallery])
    distance = 2 - 2 * (everything @ everything.T)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1).astype(np.int32)
    n, queries, half = len(everything), features.size, int(np.around(k1 / 2))

    def reciprocal(image: int, k: int) -> np.ndarray:
        forward = order[image, : k + 1]
        return forward[np.where(order[forward, : k + 1] == image)[0]]

    code = np.zeros_like(distance)
    for image in range(n):
        own = members = reciprocal(image, k1)
        for other in own:
            others = reciprocal(other, half)
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                members = np.append(members, others)
        members = np.unique(members)
        gaussian = np.exp(-distance[image, members])
        code[image, members] = gaussian / gaussian.sum()
    averaged = np.zeros_like(code)
    for image in range(n):
        averaged[image] = code[order[image, :k2]].mean(axis=0)
    having = [np.where(averaged[:, column] != 0)[0] for column in range(n)]
    jaccard = np.zeros((queries, n), np.float32)
    for image in range(queries):
        overlap = np.zeros(n, np.float32)
        for column in np.where(averaged[image] != 0)[0]:
            rows = having[column]
            overlap[rows] += np.minimum(averaged[image, column], averaged[rows, column])
        jaccard[image] = 1 - overlap / (2 - overlap)
    return ((1 - weight) * jaccard + weight * distance[:queries])[:, queries:]


def gate(case: Images, batch: Features, form: Any) -> None:
    """``form`` is what was called: it is tried on a part of the images.

    A form of products rounds as it likes: where that swaps two neighbours of an image, its distances move.
    """
    part = batch.every(max(1, (case.shape.n + case.shape.batch) // PART))
    got, expected = form(part), dense_rerank(part)
    moved = float((np.abs(got - expected) > 1e-5).mean())
    if not moved <= 1e-3:
        raise Unequal(f"distances: {100 * moved:.3g} % of them differ by more than 1e-5")


reranked = Operation(
    "rerank", "k-reciprocal re-ranking", gate, uses_features=False, make_case=Images, own_shapes=rerank_shapes
)


@reranked.contender("snnet", devices=("cpu",))
def compiled(case: Images) -> Any:
    if reranking._native is None:
        raise Unavailable("snnet._rank_metrics is not built")
    return answering(lambda batch: rerank(*batch.tensors()))


@reranked.contender("dense", devices=("cpu",), once=True)
def by_dense_matrices(case: Images) -> Any:
    needed = DENSE_MATRICES * 4 * (case.shape.n + case.shape.batch) ** 2
    if needed > free_memory(case.device):
        raise Unavailable(f"the dense form takes {needed / 1e9:.0f} GB")
    return answering(dense_rerank)
