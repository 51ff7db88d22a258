"""One class an image, for trainers that want classes and no label sets; and the groups of a set's images."""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.linalg import vector_norm

from snnet.errors import UserError
from snnet.retrieval.sparse_labels import SparseMatrix
from snnet.training.label_quality import pairs_within, precision_and_recall
from snnet_kernels import jaccard_graph

CLUSTERING = {"k1": 30, "k2": 6, "eps": 0.6, "min_samples": 4}  # cluster-contrast's
_EXTRA = "needs scipy and scikit-learn: pip install '.[cluster]' in the checkout"


def component_classes(y: SparseMatrix) -> np.ndarray:
    """Images joined by mutual positives (each is in the other's label), however many steps apart: int64 [n].

    Classes are counted from 0 in the order of their first images; an image with no mutual positive is -1.
    """
    sparse, csgraph = (_load(f"scipy.{name}") for name in ("sparse", "sparse.csgraph"))
    n = len(y)
    ones = np.ones(len(y.indices), dtype=bool)
    # scipy 1.11.0 and 1.11.1 take indices of int64 for others.
    kind = np.int32 if len(ones) < 2**31 else np.int64
    indices, indptr = (index.astype(kind, copy=False) for index in (y.indices, y.indptr))
    positive = sparse.csr_array((ones, indices, indptr), shape=(n, n))
    mutual = positive.multiply(positive.T)
    component = csgraph.connected_components(mutual, directed=False)[1].astype(np.int64)
    return _counted(np.where(np.bincount(component)[component] > 1, component, -1))


def dbscan_classes(features: Tensor, *, k1: int, k2: int, eps: float, min_samples: int) -> np.ndarray:
    """Clusters of DBSCAN on the Jaccard distances of ``features`` [n, d], rows of norm 1; outliers are -1: int64 [n].

    Rows of zeros (images without a feature) are outliers, and no image's neighbours.
    See :func:`snnet_kernels.jaccard_graph`; ``eps`` below 1 and ``min_samples`` are DBSCAN's.
    """
    cluster = _load("sklearn.cluster").DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    known = (vector_norm(features, ord=math.inf, dim=1) != 0).cpu()  # makes no truth value of each number
    classes = np.full(len(features), -1, np.int64)
    if known.any():
        rows = features if known.all() else features[known.to(features.device)]
        graph = jaccard_graph(rows, k1, k2, max_distance=eps).to_scipy()
        classes[known.numpy()] = cluster.fit_predict(graph)
    return classes


def groups_from_names(names: Sequence[str], pattern: str) -> np.ndarray:
    """The group of each image by what ``pattern`` finds in its name: its first parenthesis, else all of it. int64 [n].

    Raises:
        UserError: it is no regular expression, or finds nothing in a name.

    Warns where all images are one group: then none has a neighbour of another one.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group-pattern {pattern!r} is not a regular expression: {error}") from error
    place = min(expression.groups, 1)
    found = []
    for name in names:
        match = expression.search(name)
        if match is None or not match[place]:
            raise UserError(f"--group-pattern {pattern!r} finds no group in the name {name!r}")
        found.append(match[place])
    groups = np.unique(np.array(found, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    if len(groups) > 1 and not groups.any():
        warnings.warn(
            f"--group-pattern {pattern!r} puts all images into one group, {found[0]!r}", stacklevel=2
        )
    return groups


def class_summary(classes: np.ndarray, pids: np.ndarray | None) -> str:
    """Classes and outliers in words; with ``pids`` precision and recall of pairs of images of one class.

    An image of pid -1 (junk) is of no identity: each of its pairs is wrong.
    """
    kept = classes[classes >= 0]
    alone = len(classes) - len(kept)
    line = f"{len(np.unique(kept)):,} classes of {len(kept):,} images, {alone:,} in none"
    if pids is None:
        return line
    both = np.stack([classes, pids])[:, (classes >= 0) & (pids >= 0)]
    correct = pairs_within(np.unique(both, axis=1, return_inverse=True)[1].reshape(-1))
    precision, recall = precision_and_recall(correct, pairs_within(classes), pairs_within(pids))
    return f"{line}; pairs: precision {precision}, recall {recall} (in percent)"


def _counted(classes: np.ndarray) -> np.ndarray:
    """The same classes, counted from 0 in the order of their first images; -1 stays."""
    kept = classes >= 0
    distinct, first, place = np.unique(classes[kept], return_index=True, return_inverse=True)
    rank = np.empty(len(distinct), np.int64)
    rank[np.argsort(first)] = np.arange(len(distinct))
    counted = np.full(len(classes), -1, np.int64)
    counted[kept] = rank[place]
    return counted


def require_extra(method: str) -> None:
    """Raises UserError where what ``method`` needs is not installed."""
    _load("scipy.sparse" if method == "components" else "sklearn.cluster")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--classes {_EXTRA}") from error
