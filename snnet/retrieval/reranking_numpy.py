"""The search for neighbours of k-reciprocal re-ranking in numpy.

It serves where ``snnet._rank_metrics`` is not built; names, arguments and results are those of the compiled form.
"""

from __future__ import annotations

import numpy as np


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
