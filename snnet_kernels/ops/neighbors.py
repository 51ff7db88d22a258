"""The nearest neighbours of images in the exemplar memory."""

from __future__ import annotations

from torch import Tensor

from .. import checks, reference
from ..checks import check_index_values
from ..neighbor_list_layout import NeighborLists
from .list_labels import nearest_from_lists
from .operation import operation


@operation(
    lambda memory, index, query_rows, k: (
        index.new_empty(index.shape[0], k),
        memory.new_empty(index.shape[0], k),
    )
)
def _nearest_neighbors(
    memory: Tensor, index: Tensor, query_rows: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    check_index_values("index", index, memory.shape[0])
    return reference.nearest_neighbors(memory, index, k, query_rows=query_rows)


def nearest_neighbors(
    memory: Tensor,
    index: Tensor,
    k: int = 1,
    *,
    lists: NeighborLists | None = None,
    query_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` most similar other images of each image: (index int64 [B, k], similarity [B, k]).

    They are in descending order of similarity, NaN above everything, ties by lower index. The image itself is never
    among them. If there are fewer than k others, the index is -1 and the similarity -inf; k may be up to n + 65536.
    Equals a stable descending sort of ``S[index]`` without the image's own column. Rows of the memory may have any
    length: longer ones are more similar to everything. Arguments are as in :func:`mplp`; with ``query_rows`` lists are
    not read. Lists hold no NaN: it comes only where they are too short for k.
    """
    k = checks.check_count("k", k)
    memory, index, query_rows = checks.check_query(memory, index, query_rows, lists)
    k = checks.check_neighbors(k, memory.shape[0])
    if lists is None or query_rows is not None:
        return _nearest_neighbors(memory, index, query_rows, k)
    return nearest_from_lists(memory, index, *lists[:4], k)[:2]
