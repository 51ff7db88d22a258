"""The Jaccard distance of k-reciprocal neighbours (Zhong, Zheng, Cao and Li, CVPR 2017) as a sparse graph.

n images, d feature dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks, reference
from ..sparse_graph import SparseGraph
from .camera_lists import camera_lists
from .neighbor_lists import lists_and_lowest
from .operation import operation


def _graph(features: Tensor, nearest: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    entries = torch.library.get_ctx().new_dynamic_size()
    return (
        features.new_empty(nearest.shape[0] + 1, dtype=torch.int64),
        features.new_empty(entries, dtype=torch.int32),
        features.new_empty(entries),
    )


@operation(_graph)
def jaccard_pairs(
    features: Tensor,
    nearest: Tensor,
    more: Tensor | None,
    half: int,
    largest: Tensor | None,
    averaged: Tensor | None,
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 1 to 5 of :func:`jaccard_graph` from given lists of neighbours: indptr int64 [n + 1], indices, values.

    ``nearest`` int32 [n, c] and ``more`` [n, e] are compared. Their reciprocal sets are joined; only the set of
    ``nearest`` is expanded, by the sets of its first ``half`` columns. The rows of ``averaged`` [n, k] are averaged.
    With ``largest`` float32 [n] the weights are exp((2s − 2) / largest) instead of exp(2s − 2).
    """
    return reference.jaccard_pairs(features, nearest, more, half, largest, averaged, max_distance)


@operation(lambda *_: None, writes=("similarity",))
def blend_jaccard_(
    similarity: Tensor,
    features: Tensor,
    nearest: Tensor,
    half: int,
    largest: Tensor,
    averaged: Tensor | None,
    original_weight: float,
) -> None:
    """Re-ranking: turns the similarities [q, n − q] of the first q images to the others into distances.

    They are (1 − λ) times the distance of :func:`jaccard_pairs`, and λ = ``original_weight`` times (2 − 2s) / largest.
    """
    reference.blend_jaccard_(similarity, features, nearest, half, largest, averaged, original_weight)


def jaccard_graph(
    features: Tensor,
    k1: int = 30,
    k2: int = 6,
    *,
    max_distance: float = 0.6,
    searched: int | None = None,
    weights: str = "softmax",
    cameras: Tensor | None = None,
    camera_k1: tuple[int, int] | None = (5, 20),
    camera_k2: tuple[int, int] | None = (2, 4),
) -> SparseGraph:
    """All pairs of images with a k-reciprocal Jaccard distance of at most ``max_distance``, exact, never n × n.

    Let s be the similarities of the features, and 2 − 2s their squared distances:

    1. N(i) are the ``searched`` nearest images of i, k1 + 1 at most, i itself included, in descending order of
       similarity, ties by lower index. R(i) = {j ∈ N(i) : i ∈ N(j)}. H(i) is the same with the first round(k1 / 2) + 1
       of them (halves to even).
    2. R*(i) is the union of R(i) and every H(j), j ∈ R(i), that shares more than 2/3 of its members with R(i).
    3. V[i, j] = exp(−(2 − 2s)) for j ∈ R*(i), else 0; each row is divided by its sum.
    4. Each row of V becomes the mean of the rows of the image's first k2 nearest (k2 = 1: V is unchanged).
    5. distance = 1 − m / (2 − m) with m = Σ_l min(V[i, l], V[j, l]), at least 0.

    Equals ``compute_jaccard_distance(features, k1, k2)`` of cluster-contrast and SpCL, for distances of at most
    ``max_distance``. A pair that shares no column (distance 1) is never listed. With a ``max_distance`` of at least
    1e-5 each image is listed with itself if its row of V is not empty; below that, rounding decides. With well-spread
    features ties do not affect the result. If all features are nearly equal (every cosine above 0.995, as after a
    collapse of the network), similarities differ only by rounding, and the order above decides who is a neighbour.
    Other programs leave ties open, and then give other graphs. A row of zeros is equally similar to all images, so its
    nearest are the first ones: with k2 above 1, all such rows are near one another. Leave rows without a feature out
    before clustering.

    Besides the features it holds lists of ``searched`` entries per image, V twice, and the graph twice. m images that
    are equal (blank crops, for instance) have up to m² entries in the graph. Takes CPU and CUDA features: the
    neighbours are searched on their device, the rest runs on the CPU. With ``cameras``, ``torch.compile`` cannot trace
    it whole, because sizes depend on the values.

    Args:
        features: [n, d], any floating type and strides, rows of length 1 (or zero).
        k1: neighbours that are compared.
        k2: neighbours whose rows are averaged, the image itself included.
        max_distance: 0 to 1, compared in float32; 1 lists every pair that shares a column. For DBSCAN, its ``eps``.
        searched: by default k1, as in cluster-contrast and SpCL; ``k1 + 1`` (k1 images besides the own) is as in the
            re-ranking paper and 3C. Steps 1 and 4 read these columns.
        weights: "softmax" as in step 3; "relative" first divides 2 − 2s by the largest of its row, as the re-ranking
            paper does.
        cameras: int64 [n], the camera of each image, for the camera-aware distance (CA-Jaccard, Chen et al., CVPR
            2024). The next two arguments are used only with it.
        camera_k1: (a, b): in place of steps 1 and 2, R(i) is the union of the reciprocal neighbours among the a + 1
            nearest of the same camera (with i) and those among the b + 1 nearest of the other cameras. None: steps 1
            and 2, with ``searched`` = k1 + 1 unless given.
        camera_k2: (a, b): step 4 averages the a nearest of the same camera (with i) and the b nearest of the others.
            None: step 4 as above. If there are too few images of one kind, the nearest of the other kind follow them.

    Returns:
        SparseGraph: symmetric, ``indptr`` int64 [n + 1], ``indices`` int32, ``values`` float32, on the CPU;
        ``to_scipy()`` gives what ``sklearn.cluster.DBSCAN(metric="precomputed")`` takes.

    Raises:
        ValueError: a row whose length is neither 1 nor 0, or a wrong value. TypeError: a wrong type.
    """
    features = checks.check_matrix("features", features, "n", "d")
    features = checks.check_features("features", features, features.shape[1]).detach().contiguous()
    checks.check_lengths("features", features)
    n = features.shape[0]
    k1, k2 = checks.check_count("k1", k1), checks.check_count("k2", k2)
    limit = checks.check_share("max_distance", max_distance)
    if weights not in ("softmax", "relative"):
        raise ValueError(f"weights must be 'softmax' or 'relative', got {weights!r}")
    if searched is not None:
        searched = checks.check_count("searched", searched)
    if cameras is None:
        compared = averaged = None
    else:
        cameras = checks.check_index("cameras", cameras, 2**31, n).to(features.device)
        compared, averaged = _check_pair("camera_k1", camera_k1), _check_pair("camera_k2", camera_k2)
    if n == 0:
        sizes = ((1, torch.int64), (0, torch.int32), (0, torch.float32))
        return SparseGraph(*(torch.zeros(size, dtype=dtype, device="cpu") for size, dtype in sizes))
    lists = compared_lists(features, k1, k2, searched, cameras, compared, averaged)
    largest = 2 - 2 * lists.lowest if weights == "relative" else None
    return graph_from_lists(features, lists, largest, limit)


def graph_from_lists(
    features: Tensor, lists: ComparedLists, largest: Tensor | None, limit: float
) -> SparseGraph:
    """Steps 1 to 5 of :func:`jaccard_graph` from given lists; ``largest`` float32 [n] for relative weights."""
    compared = (lists.nearest, lists.more, lists.half)
    return SparseGraph(*jaccard_pairs(features.cpu(), *compared, largest, lists.averaged, limit))


class ComparedLists(NamedTuple):
    """The neighbours that each image is compared with, and those whose rows are averaged: int32 [n, _], on the CPU."""

    nearest: Tensor
    more: Tensor | None
    half: int  # columns of the sets that expand ``nearest``; 0: no expansion
    averaged: Tensor | None
    lowest: Tensor  # similarity of each image, float32 [n], on the CPU


def compared_lists(
    features: Tensor,
    k1: int,
    k2: int,
    searched: int | None,
    cameras: Tensor | None,
    compared: tuple[int, int] | None,
    averaged: tuple[int, int] | None,
) -> ComparedLists:
    nearest = more = means = lowest = None
    half = 0
    if compared is None or averaged is None:
        columns = (k1 if cameras is None else k1 + 1) if searched is None else searched
        columns = min(columns, max(k1 + 1, k2))
        lists, lowest = lists_and_lowest(features, columns)
        found, lowest = lists.columns.cpu(), lowest.cpu()
        nearest, half = found[:, : k1 + 1], min(round(k1 / 2) + 1, found.shape[1])
        means = found[:, :k2] if k2 > 1 else None
    if cameras is not None and (compared or averaged):
        (own, others), (own_mean, others_mean) = compared or (-1, -1), averaged or (0, 0)
        within, across, lowest = camera_lists(
            features, cameras, max(own + 1, own_mean), max(others + 1, others_mean)
        )
        if compared is not None:
            nearest, more, half = within[:, : own + 1], across[:, : others + 1], 0
        if averaged is not None:
            means = torch.cat([within[:, :own_mean], across[:, :others_mean]], dim=1)
    assert nearest is not None and lowest is not None
    return ComparedLists(nearest, more, half, means, lowest)


def _check_pair(name: str, value: object) -> tuple[int, int] | None:
    """Checked numbers of images of the same camera and of the others."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers (own camera, other cameras) or None, got {value!r}")
    own, others = (checks.check_count(f"{name}[{place}]", part, 0) for place, part in enumerate(value))
    if own + others == 0:
        raise ValueError(f"{name} must not be (0, 0)")
    return own, others
