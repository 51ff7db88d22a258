"""MPLP, memory-based positive label prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, reference
from ..checks import check_index_values
from ..layout import label_bytes
from ..neighbor_list_layout import NeighborLists
from .list_labels import mplp_from_lists
from .operation import operation


@operation(
    lambda memory, index, *_: memory.new_empty(
        index.shape[0], label_bytes(memory.shape[0]), dtype=torch.uint8
    )
)
def _mplp(
    memory: Tensor, index: Tensor, query_rows: Tensor | None, threshold: float, min_rank: int
) -> Tensor:
    check_index_values("index", index, memory.shape[0])
    return reference.mplp(memory, index, threshold, min_rank, query_rows=query_rows)


def mplp(
    memory: Tensor,
    index: Tensor,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    lists: NeighborLists | None = None,
    query_rows: Tensor | None = None,
) -> Tensor:
    """Memory-based positive label prediction: packed pseudo labels uint8 [B, label_bytes(n)].

    Let r = S[i] be the similarities of image i = ``index[b]``, with S = M Mᵀ. The candidates are the c columns with
    r > threshold, in descending order of r, ties by lower index. The anchor a is the column of the largest entry of
    the whole row. Candidate p is cycle consistent if at most ``k = max(c, min_rank)`` images are more similar to p than
    a is. Positives are the candidates before the first inconsistent one, but always the first two candidates if there
    are two, and i itself. NaN is above nothing.

    Equals sorting the similarities of every candidate and finding the rank of a there; no sort is done. With lists the
    labels are the same: a row whose list is too short is computed.

    Rows of the memory must have length 1 or less. This is not checked: without lists, longer rows may give other
    labels.

    Args:
        memory: float32 [n, d], contiguous.
        index: int64 [B], positions in the memory.
        threshold: images with a larger similarity are candidates (strictly larger; rounded to float32 first).
        min_rank: the smallest k, see above.
        lists: :func:`neighbor_lists` of the current memory; without them similarities are computed as needed.
        query_rows: [B, n] to use in place of S[index], for instance ``memory_similarity(features, memory)``.
    """
    threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
    memory, index, query_rows = checks.check_query(memory, index, query_rows, lists)
    if lists is None:
        return _mplp(memory, index, query_rows, float(threshold), min_rank)
    return mplp_from_lists(memory, index, *lists[:4], query_rows, float(threshold), min_rank)[0]
