"""The Jaccard graph of a training set, and DBSCAN on it, beside the dense form of clustering trainers.

Both start from features. The dense form takes minutes a call at Market-1501's size: this runs only where ``--size`` is
given. Seconds are those of the clock; those of the processors are kept beside them as ``cpu_seconds``. What follows the
search for neighbours is measured by itself for its growth: the search is a product of n² d.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels.ops.jaccard_graph import compared_lists, graph_from_lists

from ..case import Batch, Inputs, around, cluster_centers
from ..equality import require
from ..operation import Operation, called
from ..shapes import SIZES, Shape

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
IMAGES_OF_ONE = 17  # of an identity, as in Market-1501
DENSE_MATRICES = 4  # of float32 [n, n] at the peak, with the temporaries of DBSCAN
FEW_IMAGES = 64
PART = 1000  # images on which a form is compared before its time counts
# Share of the near pairs that may differ: rounding can swap two neighbours of an image, which moves its distances.
MOVED = 0.01
Function = Callable[[Batch], Any]  # gives distances, or labels


def jaccard_shapes(device: str, sizes: Collection[str], dims: Collection[int]) -> list[Shape]:
    """Only where a size is asked for; one d."""
    asked = [size for size in sizes if size != "million"] if device == "cpu" else []
    return [Shape(size, SIZES[size], 512, SIZES[size]) for size in asked]


class TrainingSet(Inputs):
    """Clusters, one an identity, near enough to one another that neighbours are of several; a sixth are strays.

    The batch are all images.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        rng = np.random.default_rng(0)
        centers = cluster_centers(rng, shape.n // IMAGES_OF_ONE, shape.d)
        pids = rng.integers(1, len(centers), shape.n)
        pids[rng.permutation(shape.n)[: shape.n // 6]] = 0
        features = torch.from_numpy(around(rng, centers, pids, 1.3))
        self.batches = [Batch(self, torch.arange(shape.n), features)]
        whole = np.flatnonzero(np.isin(pids, range(1, PART // IMAGES_OF_ONE)))
        strays = np.flatnonzero(pids == 0)[: PART // 6]
        part = torch.from_numpy(np.concatenate([whole, strays]))
        self.part = Batch(self, part, features[part])  # for the gates: identities with all images


def dense_jaccard(
    nearest: np.ndarray, k2: int, half: int, distance: Callable[[int, np.ndarray], np.ndarray], rows: int
) -> np.ndarray:
    """Distances float32 [rows, n] as clustering trainers compute them: dense matrices, loops over images in Python.

    ``nearest`` [n, k1] are known, each image the first of its own; ``half`` of them expand the reciprocal ones;
    ``distance(image, others)`` is the original one.
    """
    n, k1 = nearest.shape

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
        weights = np.exp(-distance(image, members))
        code[image, members] = weights / weights.sum()
    code = np.stack([code[nearest[image, :k2]].mean(axis=0) for image in range(n)])
    having = [np.flatnonzero(code[:, column]) for column in range(n)]
    distances = np.empty((rows, n), np.float32)
    for image in range(rows):
        overlap = np.zeros(n, np.float32)
        for column in np.flatnonzero(code[image]):
            others = having[column]
            overlap[others] += np.minimum(code[image, column], code[others, column])
        distances[image] = 1 - overlap / (2 - overlap)
    return distances.clip(min=0)


def dense_of(features: Tensor, nearest: np.ndarray) -> np.ndarray:
    """As cluster-contrast defines them."""

    def distance(image: int, others: np.ndarray) -> np.ndarray:
        return (2 - 2 * (features[image] @ features[others].t())).numpy()

    return dense_jaccard(nearest, K2, round(K1 / 2) + 1, distance, len(nearest))


def dense_by_faiss(batch: Batch) -> np.ndarray:
    import faiss

    features = batch.features
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features.numpy())
    return dense_of(features, index.search(features.numpy(), K1)[1])


def expected(batch: Batch) -> np.ndarray:
    """What the gates go by: neighbours by a stable sort of all similarities."""
    rows = batch.features.numpy()
    similarity = rows @ rows.T
    return dense_of(batch.features, np.argsort(-similarity, axis=1, kind="stable")[:, :K1])


def graph(batch: Batch) -> Any:
    return sk.jaccard_graph(batch.features, K1, K2, max_distance=EPS).to_scipy()


def graph_after_search(case: TrainingSet) -> Function:
    """The graph of all images from lists at hand; of others with the search."""
    (whole,) = case.batches

    def searched(batch: Batch) -> Any:
        return compared_lists(batch.features, K1, K2, None, None, None, None)

    at_hand = searched(whole)

    def form(batch: Batch) -> Any:
        lists = at_hand if batch is whole else searched(batch)
        return graph_from_lists(batch.features, lists, None, EPS).to_scipy()

    return form


def dbscan(distances: Any) -> np.ndarray:
    from sklearn.cluster import DBSCAN

    return DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit_predict(distances)


def near_pairs(distances: Any) -> np.ndarray:
    """[n, n], 1 where a pair is further apart than eps."""
    if not isinstance(distances, np.ndarray):
        listed = distances.tocoo()
        distances = np.ones(listed.shape, np.float32)
        distances[listed.row, listed.col] = listed.data
    return np.where(distances <= np.float32(EPS), distances, 1)


def distances_gate(case: TrainingSet, batch: Batch, form: Function) -> None:
    """Distances of a part of the images.

    A form of products rounds as it likes: where that swaps two neighbours of an image, its distances move.
    """
    got, wanted = near_pairs(form(case.part)), near_pairs(expected(case.part))
    near, moved = int((wanted < 1).sum()) - len(wanted), int((np.abs(got - wanted) > 1e-5).sum())
    require(near > len(wanted), f"{near} near pairs of {len(wanted)} images: these inputs are too easy")
    require(moved <= MOVED * near, f"distances: {moved} differ by more than 1e-5, of {near} near pairs")


def labels_gate(case: TrainingSet, batch: Batch, form: Function) -> None:
    """Labels of a part: as DBSCAN gives them for dense distances, but for images whose neighbours were swapped."""
    other = float((form(case.part) != dbscan(expected(case.part))).mean())
    require(other <= 1e-2, f"labels: {100 * other:.3g} % of them are others")


ONCE = {"devices": ("cpu",), "once": True}  # a call takes too long for a second


def imported(form: Function, case: TrainingSet) -> Function:
    """Call it once on a few images: packages are imported then."""
    form(case.batches[0].first(FEW_IMAGES))
    return form


def operation(name: str, title: str, gate: Any, graph: Function, dense: Function) -> Operation:
    """``graph`` beside ``dense``."""

    def with_room(case: TrainingSet) -> Function:
        case.check_room("dense matrices", DENSE_MATRICES * 4 * case.shape.n**2)
        return imported(dense, case)

    made = Operation(name, title, gate, called, make_case=TrainingSet, shapes=jaccard_shapes)
    made.contender("snnet", lambda case: imported(graph, case), **ONCE)
    made.contender("dense", with_room, **ONCE)
    return made


jaccard = operation(
    "jaccard", "Jaccard distances of a training set, up to 0.6", distances_gate, graph, dense_by_faiss
)
clustering = operation(
    "jaccard-dbscan",
    "Jaccard distances and DBSCAN on them",
    labels_gate,
    lambda batch: dbscan(graph(batch)),
    lambda batch: dbscan(dense_by_faiss(batch)),
)
after_search = Operation(
    "jaccard-after-search",
    "Jaccard distances once neighbours are found",
    distances_gate,
    called,
    make_case=TrainingSet,
    shapes=lambda *asked: [],
    grows=("snnet",),
)
# Growth is told by these: the median of several calls.
after_search.contender("snnet", lambda case: imported(graph_after_search(case), case), devices=("cpu",))
OPERATIONS = (jaccard, clustering, after_search)
