"""The nearest neighbours of images in the exemplar memory."""

from __future__ import annotations

from torch import Tensor

from .. import checks, reference
from ..checks import check_index_values
from .operation import operation


@operation(
    lambda memory, index, cache, query_rows, k: (
        index.new_empty(index.shape[0], k),
        memory.new_empty(index.shape[0], k),
    )
)
def _nearest_neighbors(
    memory: Tensor, index: Tensor, cache: Tensor | None, query_rows: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    check_index_values("index", index, memory.shape[0])
    return reference.nearest_neighbors(memory, index, k, cache=cache, query_rows=query_rows)


def nearest_neighbors(
    memory: Tensor,
    index: Tensor,
    k: int = 1,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` most similar other images of each image: (index int64 [B, k], similarity [B, k]).

    Falling similarity, NaN above everything, ties by lower index, never the image itself. Where there are fewer
    than k others the index is -1 and the similarity -inf; k may be up to n + 65536. Equals ``S[index]`` without its own
    column, stably sorted. Rows of the memory may have any length: longer ones are more similar to everything.
    Arguments as in :func:`mplp`.
    """
    k = checks.check_count("k", k)
    memory, index, cache, query_rows = checks.check_inquiry(memory, index, cache, query_rows)
    k = checks.check_neighbors(k, memory.shape[0])
    return _nearest_neighbors(memory, index, cache, query_rows, k)
