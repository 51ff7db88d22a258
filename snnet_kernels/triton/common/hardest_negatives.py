"""Where the hard negatives of a row begin: the key of the K-th largest negative of each label set.

A bar for each row, from a sample of the columns, lets through a few times K entries; their keys are collected in one
pass over the memory and the K-th of them chosen digit by digit. A row that lets through too few or too many for its
buffer is flagged and decided by :mod:`.radix_thresholds`, so the result is exact whatever the sample says.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...precision import matmul
from . import launching
from .entries import column_of_key, count_bits, label_bytes, load_label_bits, selection_key
from .launching import Tile
from .loss_gradient import REGISTERS, label_tile, programs_of_columns
from .products import tile_products
from .radix_thresholds import decide_flagged

# The sample: every 16th column, but at least so many (all, where there are fewer) and at most so many.
SPARSEST, FEWEST_SAMPLED, MOST_SAMPLED = 16, 2048, 16384
# What the collected keys may take; where they would take more every row is flagged.
COLLECTED_BYTES = 512 * 2**20
KEYS_AT_ONCE = 1024
LABEL_BYTES_AT_ONCE = 4096


class HardNegatives(NamedTuple):
    """Of each label set and sample, [sets, B]."""

    thresholds: Tensor  # int64: the smallest key of a hard negative; above every key where there are none
    positive_weights: Tensor  # fp32: δ λ / (|Pos| B), or 0
    negative_weights: Tensor  # fp32: λ / (|Hard| B), or 0


class Sampling(NamedTuple):
    """How to find the bars so that all but one row in millions lets through between K and ``capacity`` entries."""

    stride: int  # between sampled columns
    rank: int  # of the bar among the sampled; 0: no bar
    capacity: int


def sampling(n: int, hard_negative_ratio: float) -> Sampling:
    """Six standard deviations between the count that is wanted and the one that is likely, on either side."""
    stride = max(1, min(SPARSEST, n // FEWEST_SAMPLED), -(-n // MOST_SAMPLED))
    sampled = -(-n // stride)
    expected = max(1, int(hard_negative_ratio * n)) / stride
    rank = math.ceil(expected + 6 * math.sqrt(expected) + 8)
    if rank >= sampled:
        return Sampling(stride, 0, n)
    most = (3 + math.sqrt(9 + rank)) ** 2 * stride
    return Sampling(stride, rank, min(n, math.ceil(most) + 256))


def estimate_bars(features: Tensor, memory: Tensor, labels: Sequence[Tensor], plan: Sampling) -> Tensor:
    """fp32 [B]: estimates; no bar is above the K-th negative of a label set where the sample is a fair one."""
    if plan.rank == 0:
        return torch.full((features.shape[0],), -math.inf, dtype=torch.float32, device=features.device)
    sample = matmul(features, memory[:: plan.stride].t())
    column = torch.arange(0, memory.shape[0], plan.stride, device=memory.device)
    for label in labels:
        bit = label.index_select(1, column // 8) >> (column % 8).to(torch.uint8)
        sample.masked_fill_((bit & 1).bool(), -math.inf)
    return sample.topk(plan.rank, dim=1).values[:, -1].contiguous()


@triton.jit(do_not_specialize=["span", "batch_size", "n", "capacity"])
def collect_kernel(
    features,  # fp32 [B, d]
    memory,  # fp32 [n, d]
    labels_0,  # uint8 [B, L]
    labels_1,
    labels_2,
    bars,  # fp32 [B]
    collected,  # int64 [B, capacity]: out, in any order
    counts,  # int32 [B]: in zeros; out, how many there are, even past the capacity
    span,
    batch_size,
    n,
    d,
    capacity,
    SETS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_tiles = tl.cdiv(batch_size, BLOCK_A)
    sample = (tl.program_id(0) % row_tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    in_batch = sample < batch_size
    sample = tl.minimum(sample, batch_size - 1).to(tl.int64)
    start = (tl.program_id(0) // row_tiles) * span
    for first in tl.range(start, tl.minimum(start + span, n), BLOCK_B, disable_licm=True):
        column = first + tl.arange(0, BLOCK_B)
        row = tl.minimum(column, n - 1).to(tl.int64)
        products = tile_products(features, d, sample, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION)
        everywhere = label_tile(labels_0, sample, first, n, BLOCK_A, BLOCK_B)
        if SETS > 1:
            everywhere &= label_tile(labels_1, sample, first, n, BLOCK_A, BLOCK_B)
        if SETS > 2:
            everywhere &= label_tile(labels_2, sample, first, n, BLOCK_A, BLOCK_B)
        below = products < tl.load(bars + sample)[:, None]  # false for NaN, which orders above everything
        passes = (everywhere == 0) & ~below & in_batch[:, None] & (column < n)[None, :]
        order = tl.cumsum(passes.to(tl.int32), 1)
        count = tl.sum(passes.to(tl.int32), 1)
        begin = tl.atomic_add(counts + sample, count, mask=count > 0, sem="relaxed")
        place = tl.where(passes, begin[:, None] + order - 1, capacity)
        key = selection_key(products, column[None, :])
        tl.store(collected + sample[:, None] * capacity + place, key, mask=place < capacity)


@triton.jit(do_not_specialize=["n", "capacity", "ratio_bits"])
def select_kernel(
    collected,  # int64 [B, capacity]
    counts,  # int32 [B]
    labels,  # uint8 [B, L]
    thresholds,  # int64 [B]: out
    positive_weights,  # fp32 [B]: out
    negative_weights,  # fp32 [B]: out
    hard_counts,  # int32 [B]: out
    flags,  # int32 [B]: out, whether the threshold is still to be found
    positive_share,
    negative_share,
    ratio_bits,  # of a double: a float argument is rounded to fp32
    n,
    capacity,
    BLOCK: tl.constexpr,
    LABEL_BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    row_bits = labels + sample * label_bytes(n)
    bits = tl.zeros((LABEL_BLOCK,), tl.int32)
    for first in range(0, label_bytes(n), LABEL_BLOCK):
        byte = first + tl.arange(0, LABEL_BLOCK)
        bits += count_bits(load_label_bits(row_bits, byte, n))
    positives = tl.sum(bits, 0)
    negatives = n - positives
    ratio = ratio_bits.to(tl.int64).to(tl.float64, bitcast=True)
    hard = tl.maximum((ratio * negatives.to(tl.float64)).to(tl.int32), 1)  # rounds down
    hard = tl.minimum(hard, negatives)
    share = positive_share / tl.maximum(positives, 1).to(tl.float32)
    tl.store(positive_weights + sample, tl.where(positives > 0, share, 0.0))
    share = negative_share / tl.maximum(hard, 1).to(tl.float32)
    tl.store(negative_weights + sample, tl.where(hard > 0, share, 0.0))
    tl.store(hard_counts + sample, hard)

    count = tl.load(counts + sample)
    present = tl.where(count <= capacity, count, 0)
    keys = collected + sample * capacity
    prefix = tl.zeros((), tl.uint64)
    left = hard
    found = hard == 0
    bins = tl.arange(0, 256)
    for step in range(8):
        shift = 56 - 8 * step
        histogram = tl.zeros((256,), tl.int32)
        for first in range(0, present, BLOCK):
            place = first + tl.arange(0, BLOCK)
            inside = place < present
            key = tl.load(keys + place, mask=inside, other=0)
            column = column_of_key(key)
            byte = tl.load(row_bits + column // 8, mask=inside, other=0).to(tl.int32)
            negative = ((byte >> (column % 8)) & 1) == 0
            order = key.to(tl.uint64, bitcast=True) ^ (1 << 63)
            match = inside & negative & ((((order ^ prefix) >> shift) >> 8) == 0)
            histogram += tl.histogram(((order >> shift) & 255).to(tl.int32), 256, mask=match)
        above = tl.sum(histogram, 0) - tl.cumsum(histogram, 0)
        chosen = (above < left) & (above + histogram >= left)
        if step == 0:
            found = found | (tl.sum(histogram, 0) >= hard)
        digit = tl.sum(tl.where(chosen, bins, 0), 0)
        left -= tl.sum(tl.where(chosen, above, 0), 0)
        prefix |= digit.to(tl.uint64) << shift
    threshold = (prefix ^ (1 << 63)).to(tl.int64, bitcast=True)
    tl.store(thresholds + sample, tl.where(hard > 0, threshold, 0x7FFFFFFFFFFFFFFF))
    tl.store(flags + sample, (~found).to(tl.int32))


def hardest_negatives(
    features: Tensor,  # fp32 [B, d], B not 0
    memory: Tensor,  # fp32 [n, d], n not 0
    labels: Sequence[Tensor],
    weights: Sequence[float],  # of sum 1
    delta: float,
    hard_negative_ratio: float,
    precision: str,
    tile: Tile,
) -> HardNegatives:
    """The thresholds of the products made in this precision and tile, and the weights of the loss."""
    (batch_size, d), n = features.shape, memory.shape[0]
    device, sets = memory.device, len(labels)
    three = [labels[min(k, sets - 1)] for k in range(3)]
    counts = torch.zeros(batch_size, dtype=torch.int32, device=device)
    plan = sampling(n, hard_negative_ratio)
    if 8 * batch_size * plan.capacity > COLLECTED_BYTES:
        plan = plan._replace(capacity=0)
    collected = torch.empty(batch_size, plan.capacity, dtype=torch.int64, device=device)
    if plan.capacity:
        programs, span = programs_of_columns(batch_size, n, tile, device)
        launching.launch(
            collect_kernel,
            programs,
            features,
            memory,
            *three,
            estimate_bars(features, memory, labels, plan),
            collected,
            counts,
            span,
            batch_size,
            n,
            d,
            plan.capacity,
            SETS=sets,
            PRECISION=precision,
            **{**tile.options(), "maxnreg": REGISTERS},
        )
    thresholds = torch.empty(sets, batch_size, dtype=torch.int64, device=device)
    positive_weights, negative_weights = torch.empty(2, sets, batch_size, dtype=torch.float32, device=device)
    hard_counts, flags = torch.empty(2, sets, batch_size, dtype=torch.int32, device=device)
    (ratio_bits,) = struct.unpack("q", struct.pack("d", hard_negative_ratio))
    for k in range(sets):
        launching.launch(
            select_kernel,
            batch_size,
            collected,
            counts,
            labels[k],
            thresholds[k],
            positive_weights[k],
            negative_weights[k],
            hard_counts[k],
            flags[k],
            delta * weights[k] / batch_size,
            weights[k] / batch_size,
            ratio_bits,
            n,
            plan.capacity,
            BLOCK=KEYS_AT_ONCE,
            LABEL_BLOCK=LABEL_BYTES_AT_ONCE,
            maxnreg=REGISTERS,
        )
    decide_flagged(features, memory, three, hard_counts, flags, thresholds, precision, tile)
    return HardNegatives(thresholds, positive_weights, negative_weights)
