"""The steps of k-reciprocal re-ranking in numpy: what serves where ``snnet._rank_metrics`` is not built.

Names, arguments and results are those of the compiled steps. A sparse matrix is (starts, columns, values): row
i has the columns ``starts[i]`` to ``starts[i + 1]``, rising.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

SparseRows = tuple[np.ndarray, np.ndarray, np.ndarray]


class NearestRows:
    """The ``count`` most similar images of each image, equal ones by rising index, and its lowest similarity."""

    def __init__(self, images: int, count: int) -> None:
        self._indices = np.full((images, count), -1, np.int32)
        self._values = np.full((images, count), -np.inf, np.float32)
        self._lowest = np.full(images, np.inf, np.float32)

    def merge(self, similarity: np.ndarray, first: int, threads: int) -> None:
        """Similarities of the images ``first``, ``first + 1``, ... with all from ``first`` on.

        Blocks come in order. They are symmetric: what lies to the right of the diagonal block serves the
        images of its columns too.
        """
        rows = len(similarity)
        self._merge(slice(first, first + rows), similarity, first)
        self._merge(slice(first + rows, None), similarity[:, rows:].T, first)

    def _merge(self, images: slice, similarity: np.ndarray, first: int) -> None:
        """Each of ``images`` meets the images from ``first`` on, all behind those that it has met."""
        if similarity.size == 0:
            return
        met = np.arange(first, first + similarity.shape[1], dtype=np.int32)
        values = np.concatenate([self._values[images], similarity], axis=1)
        indices = np.concatenate(
            [self._indices[images], np.broadcast_to(met, similarity.shape)], axis=1, dtype=np.int32
        )
        order = np.argsort(-values, axis=1, kind="stable")[:, : self._values.shape[1]]
        self._values[images] = np.take_along_axis(values, order, axis=1)
        self._indices[images] = np.take_along_axis(indices, order, axis=1)
        self._lowest[images] = np.minimum(self._lowest[images], similarity.min(axis=1))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices int32 [images, count] and lowest similarities float32 [images]."""
        return self._indices, self._lowest


def reciprocal_weights(
    nearest: np.ndarray,  # int32 [images, listed]
    neighbors: int,
    half: int,
    features: np.ndarray,  # float32 [images, d]
    lowest: np.ndarray,  # float32 [images]
    threads: int,
) -> SparseRows:
    """V [images, images] before query expansion: the expanded reciprocal sets with their Gaussian weights."""
    reciprocal = _reciprocal_sets(nearest[:, :neighbors])
    half_sets = _reciprocal_sets(nearest[:, :half])
    listed = np.zeros(len(nearest), dtype=bool)
    rows = []
    for image, own in enumerate(reciprocal):
        listed[own] = True
        sets = [own]
        sets += [half_sets[i] for i in own if 3 * listed[half_sets[i]].sum() > 2 * len(half_sets[i])]
        listed[own] = False
        columns = np.unique(np.concatenate(sets))
        distance = relative_distance(features[columns] @ features[image], lowest[image])
        weights = np.exp(-distance.astype(np.float64))
        rows.append((columns, (weights / weights.sum()).astype(np.float32)))
    return _sparse(rows)


def _reciprocal_sets(nearest: np.ndarray) -> list[np.ndarray]:
    """Of each image those neighbours that have it among their own."""
    return [row[(nearest[row] == image).any(axis=1)] for image, row in enumerate(nearest)]


def expand_query(nearest: np.ndarray, neighbors: int, code: SparseRows, threads: int) -> SparseRows:
    """Each row of V as the mean of the rows of the image's first ``neighbors`` nearest."""
    starts, columns, values = code
    rows = []
    for own in nearest[:, :neighbors]:
        parts = [slice(starts[i], starts[i + 1]) for i in own]
        distinct, place = np.unique(np.concatenate([columns[part] for part in parts]), return_inverse=True)
        sums = np.zeros(len(distinct), np.float32)
        np.add.at(sums, place, np.concatenate([values[part] for part in parts]))
        rows.append((distinct, sums / np.float32(neighbors)))
    return _sparse(rows)


def _sparse(rows: list[tuple[np.ndarray, np.ndarray]]) -> SparseRows:
    starts = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])]).astype(np.int64)
    columns = np.concatenate([columns for columns, _ in rows]).astype(np.int32)
    return starts, columns, np.concatenate([values for _, values in rows])


class JaccardIndex:
    """The codes of the queries by row, and those of the gallery by column."""

    def __init__(self, code: SparseRows, queries: int) -> None:
        starts, columns, values = code
        split = starts[queries]
        images = len(starts) - 1
        self._queries = [(columns[a:b], values[a:b]) for a, b in pairwise(starts[: queries + 1])]
        self._gallery = images - queries
        order = np.argsort(columns[split:], kind="stable")
        self._rows = np.repeat(np.arange(self._gallery), np.diff(starts[queries:]))[order]
        self._values = values[split:][order]
        self._starts = np.searchsorted(columns[split:][order], np.arange(images + 1))

    def blend(
        self,
        similarity: np.ndarray,  # float32 [queries, gallery], overwritten by the final distances
        lowest: np.ndarray,  # float32 [images]
        original_weight: float,
        threads: int,
    ) -> None:
        """(1 - λ) Jaccard distance + λ original distance."""
        for row, code, least in zip(similarity, self._queries, lowest, strict=False):
            overlap = np.zeros(self._gallery, np.float32)
            for column, value in zip(*code, strict=True):
                part = slice(self._starts[column], self._starts[column + 1])
                overlap[self._rows[part]] += np.minimum(self._values[part], value)
            jaccard = 1 - overlap / (2 - overlap)
            original = relative_distance(row, least)
            row[:] = np.float32(1 - original_weight) * jaccard + np.float32(original_weight) * original


def relative_distance(similarity: np.ndarray, lowest: np.float32) -> np.ndarray:
    """The squared Euclidean distance of unit vectors over the largest one of the row; 0 where all are 0."""
    largest = 2 - 2 * lowest
    return (2 - 2 * similarity) / largest if largest > 0 else np.zeros_like(similarity)
