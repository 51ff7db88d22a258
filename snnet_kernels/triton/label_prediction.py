"""MPLP without lists: select candidates, count ranks, decide, with products made tile by tile.

Scratch is bits and what counts them off, at most B label_bytes(n) (7.1) bytes, and some kilobytes for each
multiprocessor, however many candidates there are.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import label_bytes as bytes_of_labels
from ..precision import get_matmul_precision
from .common import launching
from .common.candidates import candidates, given_candidates
from .common.entries import HIGHEST, NOTHING
from .common.pairs import (
    Pairs,
    find_pairs,
    largest_key_kernel,
    launch_over_pairs,
    mark_pairs,
    pair_keys,
    pairs_of_tile,
)
from .common.rank_counts import inconsistent_pairs
from .common.row_bounds import row_bounds

LABEL_BYTES_AT_ONCE = 4096


@triton.jit(do_not_specialize=["width", "n", "min_rank"])
def start_labels_kernel(
    bits,  # uint8 [B, L]
    index,  # int64 [B]
    sizes,  # int64 [B], candidates
    walked,  # int64 [B], candidates of the samples that need a walk
    labels,  # uint8 [B, L]
    width,
    n,
    min_rank,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(sizes + row)
    max_rank = tl.maximum(count, min_rank)
    # Two candidates are positive whatever the check says, and no rank exceeds n - 1.
    needs_walk = (count > 2) & (max_rank < n - 1)
    tl.store(walked + row, tl.where(needs_walk, count, 0))
    image = tl.load(index + row)
    for first in range(0, width, BLOCK):
        byte = first + tl.arange(0, BLOCK)
        inside = byte < width
        value = tl.load(bits + row * width + byte, mask=inside, other=0).to(tl.int32)
        value = tl.where(needs_walk, 0, value)
        value |= tl.where(byte == image // 8, 1 << (image % 8).to(tl.int32), 0)
        tl.store(labels + row * width + byte, value.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["batch_size", "blocks", "n"])
def first_inconsistent_kernel(
    ends,
    sizes,
    before,
    bits,
    memory,
    index,
    given,
    inconsistent,  # uint8 [B, L]
    anchor_keys,  # int64 [B]
    inconsistent_keys,  # int64 [B]: out, the largest of an inconsistent candidate
    second_keys,  # int64 [B]: out, the largest after the anchor's
    batch_size,
    blocks,
    n,
    d,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The keys that end a sample's positives: of its first inconsistent candidate, and of its second candidate."""
    total = tl.load(ends + batch_size - 1)
    for tile in range(tl.program_id(0), tl.cdiv(total, BLOCK), tl.num_programs(0)):
        pair = pairs_of_tile(tile, total, BLOCK)
        sample, column, key = pair_keys(
            pair,
            ends,
            sizes,
            before,
            bits,
            memory,
            index,
            given,
            batch_size,
            blocks,
            n,
            d,
            GIVEN,
            BLOCK,
            BLOCK_K,
        )
        byte = tl.load(inconsistent + sample.to(tl.int64) * (16 * blocks) + column // 8).to(tl.int32)
        tl.atomic_max(inconsistent_keys + sample, key, mask=((byte >> (column % 8)) & 1) != 0)
        tl.atomic_max(second_keys + sample, key, mask=key < tl.load(anchor_keys + sample))


@triton.jit(do_not_specialize=["batch_size", "blocks", "n"])
def positive_kernel(
    ends,
    sizes,
    before,
    bits,
    memory,
    index,
    given,
    inconsistent_keys,
    second_keys,
    labels,  # int32 [B, L / 4], in and out
    batch_size,
    blocks,
    n,
    d,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Set the bits of the candidates before the first inconsistent one, and of the first two in any case."""
    total = tl.load(ends + batch_size - 1)
    for tile in range(tl.program_id(0), tl.cdiv(total, BLOCK), tl.num_programs(0)):
        pair = pairs_of_tile(tile, total, BLOCK)
        sample, column, key = pair_keys(
            pair,
            ends,
            sizes,
            before,
            bits,
            memory,
            index,
            given,
            batch_size,
            blocks,
            n,
            d,
            GIVEN,
            BLOCK,
            BLOCK_K,
        )
        positive = key > tl.load(inconsistent_keys + sample)
        positive = positive | (key >= tl.load(second_keys + sample))
        mark_pairs(labels, sample, column, blocks, positive)


def mplp(
    memory: Tensor,
    index: Tensor,
    query_rows: Tensor | None,
    threshold: float,
    min_rank: int,
    *,
    precision: str | None = None,
) -> Tensor:
    """Packed pseudo labels uint8 [B, label_bytes(n)] as :func:`snnet_kernels.mplp` defines them.

    "bf16" gives the labels of "ieee": what rounded products cannot decide is decided again without rounding.

    Args:
        memory: fp32 [n, d], contiguous.
        index: int64 [B], any stride.
        query_rows: fp32 [B, n], any strides, in place of S[index].
        precision: one of ``PRECISIONS``, by default the chosen one.
    """
    precision = precision or get_matmul_precision()
    batch_size, (n, _) = index.shape[0], memory.shape
    width = bytes_of_labels(n)
    if batch_size == 0 or n == 0:
        return torch.zeros(batch_size, width, dtype=torch.uint8, device=memory.device)
    index = index.contiguous()
    query_rows = None if query_rows is None else query_rows.contiguous()
    bounds = row_bounds(memory) if precision == "bf16" else None
    if query_rows is not None:
        bits = given_candidates(query_rows, threshold)
    else:
        bars = torch.full((batch_size,), threshold, dtype=torch.float32, device=memory.device)
        bits = candidates(memory, index, bars, precision, bounds)
    found = find_pairs(bits)
    walked, labels = _start_labels(found, index, n, min_rank)
    pairs = found._replace(sizes=walked, ends=walked.cumsum(0))

    lowest = torch.full((3, batch_size), NOTHING, dtype=torch.int64, device=memory.device)
    anchor_keys, inconsistent_keys, second_keys = lowest
    ceilings = torch.full_like(anchor_keys, HIGHEST)
    launch_over_pairs(
        largest_key_kernel, pairs, memory, index, query_rows, ceilings, anchor_keys, OTHERS=False
    )
    inconsistent, in_doubt = inconsistent_pairs(
        pairs, memory, anchor_keys, found.sizes, min_rank, precision, bounds
    )
    if bounds is not None:
        decided, _ = inconsistent_pairs(
            find_pairs(in_doubt), memory, anchor_keys, found.sizes, min_rank, "ieee", few=True
        )
        inconsistent |= decided
    launch_over_pairs(
        first_inconsistent_kernel,
        pairs,
        memory,
        index,
        query_rows,
        inconsistent,
        anchor_keys,
        inconsistent_keys,
        second_keys,
    )
    launch_over_pairs(
        positive_kernel,
        pairs,
        memory,
        index,
        query_rows,
        inconsistent_keys,
        second_keys,
        labels.view(torch.int32),
    )
    return labels


def _start_labels(found: Pairs, index: Tensor, n: int, min_rank: int) -> tuple[Tensor, Tensor]:
    """(candidates int64 [B] of the samples that need a walk, else 0; labels of those that need none)."""
    walked = torch.empty_like(found.sizes)
    labels = torch.empty_like(found.bits)
    launching.launch(
        start_labels_kernel,
        index.shape[0],
        found.bits,
        index,
        found.sizes,
        walked,
        labels,
        labels.shape[1],
        n,
        min_rank,
        BLOCK=LABEL_BYTES_AT_ONCE,
    )
    return walked, labels
