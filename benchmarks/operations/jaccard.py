"""The Jaccard graph of a training set, and DBSCAN on it, beside the dense form of clustering trainers.

Both start from features. The dense form takes minutes a call at Market-1501's size: this runs only where ``--size`` is
given. Seconds are those of the clock; those of the processors are kept beside them as ``cpu_seconds``. What follows the
search for neighbours is measured by itself for its growth: the search is a product of n² d.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels.memory_size import free_memory
from snnet_kernels.ops.jaccard_graph import ComparedLists, compared_lists, graph_from_lists

from ..case import Inputs, Unavailable
from ..equality import Unequal
from ..operation import Operation
from ..peak_memory import peak_in_place
from ..peers.jaccard import dense_jaccard, faiss_neighbors, sorted_neighbors
from ..shapes import SIZES, Shape

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
IMAGES_OF_ONE = 17  # of an identity, as in Market-1501
DENSE_MATRICES = 4  # of float32 [n, n] at the peak, with the temporaries of DBSCAN
WARM_UP = 64  # images
PART = 1000  # images on which a form is compared before its time counts


def jaccard_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    """Only where a size is asked for; one d."""
    asked = [size for size in sizes if size != "million"] if device == "cpu" else []
    return [Shape(size, SIZES[size], 512, SIZES[size]) for size in asked]


class Images(NamedTuple):
    """The batch: features of all images."""

    features: Tensor

    @property
    def size(self) -> int:
        return len(self.features)


class TrainingSet(Inputs):
    """Clusters, one an identity, near enough to one another that neighbours are of several; a sixth are strays."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        rng = np.random.default_rng(0)
        centers = rng.standard_normal((shape.n // IMAGES_OF_ONE + 1, shape.d), dtype=np.float32)
        centers[0] = 0
        pids = rng.integers(1, len(centers), shape.n)
        pids[rng.permutation(shape.n)[: shape.n // 6]] = 0
        drawn = centers[pids] + 1.3 * rng.standard_normal((shape.n, shape.d), dtype=np.float32)
        self.batches = [Images(torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True)))] * 2


class Answer(NamedTuple):
    """What was called, the seconds of all processors that it took, and its peak memory."""

    form: Callable[[Tensor], Any]
    cpu_seconds: float
    peak_bytes: int | None

    def measures(self) -> dict[str, Any]:
        found = {"cpu_seconds": self.cpu_seconds, "peak_bytes": self.peak_bytes}
        return {name: value for name, value in found.items() if value is not None}


def answering(case: TrainingSet, form: Callable[[Tensor], Any]) -> Callable[[Images], Answer]:
    """Calls ``form``, and hands it to the gate."""
    form(case.batches[0].features[:WARM_UP])  # packages are imported before the clock runs

    def run(batch: Images) -> Answer:
        before = os.times()
        peak = peak_in_place(lambda: form(batch.features))
        after = os.times()
        return Answer(form, after.user + after.system - before.user - before.system, peak)

    return run


def near_pairs(distances: Any) -> np.ndarray:
    """[n, n], 1 where a pair is further apart than eps."""
    if not isinstance(distances, np.ndarray):
        listed = distances.tocoo()
        distances = np.ones(listed.shape, np.float32)
        distances[listed.row, listed.col] = listed.data
    return np.where(distances <= np.float32(EPS), distances, 1)


def distances_gate(case: TrainingSet, batch: Images, answer: Answer) -> dict[str, Any]:
    """A form of products rounds as it likes: where that swaps two neighbours of an image, its distances move."""
    part = batch.features[:PART]
    expected = near_pairs(dense_jaccard(part, sorted_neighbors(part.numpy(), K1), K1, K2))
    moved = float((np.abs(near_pairs(answer.form(part)) - expected) > 1e-5).mean())
    if not moved <= 1e-3:
        raise Unequal(f"distances: {100 * moved:.3g} % of them differ by more than 1e-5")
    return answer.measures()


def labels_gate(case: TrainingSet, batch: Images, answer: Answer) -> dict[str, Any]:
    """Labels of a part: as DBSCAN gives them for dense distances, but for images whose neighbours were swapped."""
    part = batch.features[:PART]
    distances = dense_jaccard(part, sorted_neighbors(part.numpy(), K1), K1, K2)
    other = float((answer.form(part) != dbscan(distances)).mean())
    if not other <= 1e-2:
        raise Unequal(f"labels: {100 * other:.3g} % of them are others")
    return answer.measures()


def dbscan(distances: Any) -> np.ndarray:
    from sklearn.cluster import DBSCAN

    return DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit_predict(distances)


def graph_of(features: Tensor) -> Any:
    return sk.jaccard_graph(features, K1, K2, max_distance=EPS).to_scipy()


def dense_of(features: Tensor) -> np.ndarray:
    return dense_jaccard(features, faiss_neighbors(features.numpy(), K1), K1, K2)


def graph_after_search(case: TrainingSet) -> Callable[[Tensor], Any]:
    """The graph of all images from lists at hand; of others with the search."""
    whole = case.batches[0].features

    def searched(features: Tensor) -> ComparedLists:
        return compared_lists(features, K1, K2, None, None, None, None)

    at_hand = searched(whole)

    def form(features: Tensor) -> Any:
        lists = at_hand if features is whole else searched(features)
        return graph_from_lists(features, lists, None, EPS).to_scipy()

    return form


def with_room(case: TrainingSet) -> None:
    needed, free = DENSE_MATRICES * 4 * case.shape.n**2, free_memory(torch.device("cpu"))
    if needed > free:
        raise Unavailable(
            f"dense matrices take {needed / 2**30:.0f} GiB of the {free / 2**30:.0f} that are free"
        )


def operation(name: str, title: str, gate: Any) -> Operation:
    return Operation(name, title, gate, uses_features=False, make_case=TrainingSet, own_shapes=jaccard_shapes)


jaccard = operation("jaccard", "Jaccard distances of a training set, up to 0.6", distances_gate)
clustering = operation("jaccard-dbscan", "Jaccard distances and DBSCAN on them", labels_gate)


after_search = Operation(
    "jaccard-after-search",
    "Jaccard distances once neighbours are found",
    distances_gate,
    uses_features=False,
    make_case=TrainingSet,
    own_shapes=lambda device, sizes: [],
    grows=("snnet",),
)


@after_search.contender("snnet", devices=("cpu",), requires="scipy", once=True)
def graph_of_lists(case: TrainingSet) -> Any:
    return answering(case, graph_after_search(case))


@jaccard.contender("snnet", devices=("cpu",), requires="scipy", once=True)
def graph(case: TrainingSet) -> Any:
    return answering(case, graph_of)


@jaccard.contender("dense", devices=("cpu",), requires="faiss", once=True)
def dense(case: TrainingSet) -> Any:
    with_room(case)
    return answering(case, dense_of)


@clustering.contender("snnet", devices=("cpu",), requires="sklearn", once=True)
def clusters_of_graph(case: TrainingSet) -> Any:
    return answering(case, lambda features: dbscan(graph_of(features)))


@clustering.contender("dense", devices=("cpu",), requires="sklearn", once=True)
def clusters_of_dense(case: TrainingSet) -> Any:
    with_room(case)
    return answering(case, lambda features: dbscan(dense_of(features)))
