"""MPLP, memory-based positive label prediction, and the three label sets of an iteration made of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, reference
from ..checks import check_index_values
from ..layout import CacheBlocks, label_bytes
from .operation import operation


@operation(
    lambda memory, index, *_: memory.new_empty(
        index.shape[0], label_bytes(memory.shape[0]), dtype=torch.uint8
    )
)
def _mplp(
    memory: Tensor,
    index: Tensor,
    cache: Tensor | None,
    query_rows: Tensor | None,
    threshold: float,
    min_rank: int,
    strict: bool,
    block_bits: Tensor | None = None,
    block_floor: float = 0.0,
) -> Tensor:
    check_index_values("index", index, memory.shape[0])
    return reference.mplp(
        memory, index, threshold, min_rank, cache=cache, query_rows=query_rows, strict=strict
    )


@operation(
    lambda memory, index, cache, query_rows, row_bits, *_: tuple(
        row_bits.new_empty(index.shape[0], row_bits.shape[1]) for _ in range(3)
    ),
    writes=("row_bits", "column_bits"),
)
def _mine_labels_(
    memory: Tensor,
    index: Tensor,
    cache: Tensor | None,
    query_rows: Tensor | None,
    row_bits: Tensor,
    column_bits: Tensor,
    threshold: float,
    min_rank: int,
    strict: bool,
    block_bits: Tensor | None = None,
    block_floor: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 2 to 4 of an iteration from one operation each, on whichever backend serves them."""
    operations, inquiry = torch.ops.snnet, (memory, index, cache, query_rows)
    labels = operations.mplp.default(*inquiry, threshold, min_rank, strict, block_bits, block_floor)
    neighbor, _ = operations.nearest_neighbors.default(*inquiry, 1)
    symmetric_labels = operations.gather_labels.default(column_bits, index)
    # A single image has no neighbour (-1), and so an empty label.
    neighbor_labels = operations.gather_labels.default(row_bits, neighbor.flatten())
    operations.write_labels_.default(row_bits, column_bits, index, labels)
    return labels, symmetric_labels, neighbor_labels


def mplp(
    memory: Tensor,
    index: Tensor,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
    blocks: CacheBlocks | None = None,
    strict: bool = False,
) -> Tensor:
    """Memory-based positive label prediction: packed pseudo labels uint8 [B, label_bytes(n)].

    With r = S[i] the similarities of image i = ``index[b]``: candidates are the columns with r > threshold,
    by falling r, ties by lower index, c of them; the anchor a is the first of the whole row. Candidate p is
    cycle consistent if at most ``k = max(c, min_rank)`` images are more similar to p than a is. Positives are
    the candidates before the first inconsistent one, at least two of them if there are two, and i itself. NaN is
    above nothing.

    Equals sorting the similarity row of every candidate and looking where a stands, without a sort.

    Rows of the memory must have length 1 or less, which is not checked: without a cache longer ones may get others.

    Args:
        memory: float32 [n, d], contiguous.
        index: int64 [B], positions in the memory.
        threshold: similarity above which an image is a candidate (strictly; rounded to float32 first).
        min_rank: the smallest rank that counts as consistent.
        cache: S = M Mᵀ float32 [n, n], contiguous; without it the products are made as they are needed.
        query_rows: [B, n] in place of S[index], for instance ``memory_similarity(features, memory)``.
        blocks: :func:`mark_cache_blocks` of the cache as it is: the same labels with less reading.
        strict: the reading of the MMCL paper: k = c, and exactly the candidates before the inconsistent one.
    """
    threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
    memory, index, cache, query_rows = checks.check_inquiry(memory, index, cache, query_rows)
    bits, floor = checks.check_blocks("blocks", blocks, cache, memory.shape[0])
    checks.check_same_device(memory=memory, blocks=bits)
    return _mplp(
        memory,
        index,
        cache,
        query_rows,
        float(threshold),
        min_rank,
        checks.check_flag("strict", strict),
        bits,
        floor,
    )


def mine_labels_(
    memory: Tensor,
    index: Tensor,
    row_bits: Tensor,
    column_bits: Tensor,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
    blocks: CacheBlocks | None = None,
    strict: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three label sets of a batch, and the main one written to the pseudo label memory (steps 2 to 4).

    Returns packed (y, y_sym, y_nh), uint8 [B, label_bytes(n)] each. Equals :func:`mplp`, then
    :func:`gather_labels` of ``column_bits`` at ``index`` (Eq. 4) and of ``row_bits`` at the nearest other image
    (Eq. 6), then :func:`write_labels_` (Eq. 3): the inquiries see P as it was before. Lengths as in :func:`mplp`; the
    matrices must not share memory.

    Args:
        memory, index, threshold, min_rank, cache, query_rows, blocks, strict: as in :func:`mplp`.
        row_bits, column_bits: P and Pᵀ as bits, uint8 [n, label_bytes(n)], contiguous, written.
    """
    threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
    memory, index, cache, query_rows = checks.check_inquiry(memory, index, cache, query_rows)
    n = memory.shape[0]
    row_bits = checks.check_labels("row_bits", row_bits, n, n)
    column_bits = checks.check_labels("column_bits", column_bits, n, n)
    bits, floor = checks.check_blocks("blocks", blocks, cache, n)
    checks.check_same_device(memory=memory, row_bits=row_bits, column_bits=column_bits, blocks=bits)
    options = float(threshold), min_rank, checks.check_flag("strict", strict)
    written, kept = (
        {"row_bits": row_bits, "column_bits": column_bits},
        {"memory": memory, "cache": cache, "blocks": bits},
    )
    index, query_rows = checks.apart(written, index, query_rows, kept=kept)
    return _mine_labels_(memory, index, cache, query_rows, row_bits, column_bits, *options, bits, floor)
