"""The K-th largest negative of a row, digit by digit of its key: one pass over the memory a digit.

For the rows that are flagged. A program whose rows are not does nothing.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .entries import selection_key
from .launching import Tile
from .loss_gradient import REGISTERS, column_span, label_tile
from .products import tile_products

DIGIT_BITS = tl.constexpr(4)
DIGITS = tl.constexpr(16)
ROWS_AT_ONCE = 64


@triton.jit
def chosen_before(
    prefixes,  # uint64 as int64 [steps, SETS, B]: the digits chosen before each step
    left,  # int32 [steps, SETS, B]: the rank of the wanted key among the keys that begin so
    counts,  # int32 [steps, SETS, B, DIGITS]: the keys that begin so, by their next digit
    step,
    shift_before,  # of the step before
    place,  # int64 [BLOCK_A], of the samples in [SETS, B]
    plane,  # SETS B
):
    """(prefix uint64, rank int32) [BLOCK_A] before ``step``, from the counts of the step before."""
    earlier = tl.maximum(step - 1, 0).to(tl.int64) * plane + place
    prefix = tl.load(prefixes + earlier).to(tl.uint64, bitcast=True)
    rank = tl.load(left + earlier)
    if step > 0:
        digit = tl.arange(0, DIGITS)
        count = tl.load(counts + earlier[:, None] * DIGITS + digit[None, :])
        above = tl.sum(count, 1)[:, None] - tl.cumsum(count, 1)
        chosen = (above < rank[:, None]) & (above + count >= rank[:, None])
        prefix |= tl.sum(tl.where(chosen, digit[None, :], 0), 1).to(tl.uint64) << shift_before
        rank -= tl.sum(tl.where(chosen, above, 0), 1)
    return prefix, rank


@triton.jit
def prefix_at(prefixes, left, counts, step, shift_before, place, plane, stores):
    """The prefix of :func:`chosen_before`, left for the next step where ``stores`` [BLOCK_A]."""
    prefix, rank = chosen_before(prefixes, left, counts, step, shift_before, place, plane)
    now = step.to(tl.int64) * plane + place
    tl.store(prefixes + now, prefix.to(tl.int64, bitcast=True), mask=stores)
    tl.store(left + now, rank, mask=stores)
    return prefix


@triton.jit
def add_digits(histogram, order, positive, inside, prefix, shift):
    """histogram [BLOCK_A, DIGITS] plus the digits at ``shift`` of the negatives that begin with the prefix."""
    match = inside & (positive == 0) & ((((order ^ prefix[:, None]) >> shift) >> DIGIT_BITS) == 0)
    digits = tl.where(match, ((order >> shift) & (DIGITS - 1)).to(tl.int32), -1)
    for digit in range(DIGITS):
        count = tl.sum((digits == digit).to(tl.int32), 1)
        histogram += tl.where((tl.arange(0, DIGITS) == digit)[None, :], count[:, None], 0)
    return histogram


@triton.jit(do_not_specialize=["step", "shift", "shift_before", "span", "batch_size", "n"])
def count_digits_kernel(
    features,  # fp32 [B, d]
    memory,  # fp32 [n, d]
    labels_0,  # uint8 [B, L]
    labels_1,
    labels_2,
    flags,  # int32 [SETS, B]
    prefixes,  # [steps, SETS, B], in and out
    left,  # [steps, SETS, B], in and out
    counts,  # [steps, SETS, B, DIGITS], in and out, zeros at first
    step,
    shift,
    shift_before,
    span,
    batch_size,
    n,
    d,
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
    flagged = tl.load(flags + sample)
    for k in tl.static_range(1, SETS):
        flagged |= tl.load(flags + k * batch_size + sample)
    flagged = in_batch & (flagged != 0)
    if tl.max(flagged.to(tl.int32), 0) > 0:
        start = (tl.program_id(0) // row_tiles) * span
        stores = flagged & (start == 0) & (step > 0)
        plane = SETS * batch_size.to(tl.int64)
        prefix_0 = prefix_at(prefixes, left, counts, step, shift_before, sample, plane, stores)
        histogram_0 = tl.zeros((BLOCK_A, DIGITS), tl.int32)
        if SETS > 1:
            place = batch_size + sample
            prefix_1 = prefix_at(prefixes, left, counts, step, shift_before, place, plane, stores)
            histogram_1 = histogram_0
        if SETS > 2:
            place = 2 * batch_size + sample
            prefix_2 = prefix_at(prefixes, left, counts, step, shift_before, place, plane, stores)
            histogram_2 = histogram_0
        for first in tl.range(start, tl.minimum(start + span, n), BLOCK_B, disable_licm=True):
            column = first + tl.arange(0, BLOCK_B)
            row = tl.minimum(column, n - 1).to(tl.int64)
            products = tile_products(
                features, d, sample, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
            )
            order = selection_key(products, column[None, :]).to(tl.uint64, bitcast=True) ^ (1 << 63)
            inside = (column < n)[None, :]
            bits = label_tile(labels_0, sample, first, n, BLOCK_A, BLOCK_B)
            histogram_0 = add_digits(histogram_0, order, bits, inside, prefix_0, shift)
            if SETS > 1:
                bits = label_tile(labels_1, sample, first, n, BLOCK_A, BLOCK_B)
                histogram_1 = add_digits(histogram_1, order, bits, inside, prefix_1, shift)
            if SETS > 2:
                bits = label_tile(labels_2, sample, first, n, BLOCK_A, BLOCK_B)
                histogram_2 = add_digits(histogram_2, order, bits, inside, prefix_2, shift)
        total = counts + (step * plane + sample)[:, None] * DIGITS + tl.arange(0, DIGITS)[None, :]
        tl.atomic_add(total, histogram_0, mask=flagged[:, None], sem="relaxed")
        if SETS > 1:
            tl.atomic_add(total + batch_size * DIGITS, histogram_1, mask=flagged[:, None], sem="relaxed")
        if SETS > 2:
            tl.atomic_add(total + 2 * batch_size * DIGITS, histogram_2, mask=flagged[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["steps", "rows"])
def last_digit_kernel(
    flags,
    prefixes,
    left,
    counts,
    thresholds,  # int64 [SETS, B], in and out
    steps,
    rows,  # SETS B
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    row = tl.minimum(row, rows - 1)
    prefix, _ = chosen_before(prefixes, left, counts, steps, 0, row, rows)
    threshold = (prefix ^ (1 << 63)).to(tl.int64, bitcast=True)
    tl.store(thresholds + row, threshold, mask=inside & (tl.load(flags + row) != 0))


def decide_flagged(
    features: Tensor,  # fp32 [B, d]
    memory: Tensor,  # fp32 [n, d]
    labels: Sequence[Tensor],  # three
    ranks: Tensor,  # int32 [sets, B], at least 1 and at most the negatives where flagged
    flags: Tensor,  # int32 [sets, B]
    thresholds: Tensor,  # int64 [sets, B], in and out
    precision: str,
    tile: Tile,
) -> None:
    """Write the key of each flagged label set's negative of that rank; other thresholds stay."""
    (sets, batch_size), (n, d) = flags.shape, memory.shape
    device = memory.device
    # The high half of a key is its value; of the low half, 2³¹ - 1 - column, the upper digits are known.
    column_digits = launching.blocks_of((n - 1).bit_length(), DIGIT_BITS.value)
    value_shifts = range(32, 64, DIGIT_BITS.value)
    column_shifts = range(0, column_digits * DIGIT_BITS.value, DIGIT_BITS.value)
    shifts = [*reversed(value_shifts), *reversed(column_shifts)]
    known = 0x7FFFFFFF >> len(column_shifts) * DIGIT_BITS.value << len(column_shifts) * DIGIT_BITS.value
    prefixes = torch.full((len(shifts), sets, batch_size), known, dtype=torch.int64, device=device)
    left = ranks.expand(len(shifts), -1, -1).contiguous()
    counts = torch.zeros(len(shifts), sets, batch_size, DIGITS.value, dtype=torch.int32, device=device)
    programs, span = column_span(batch_size, n, tile, device)
    for step, shift in enumerate(shifts):
        launching.launch(
            count_digits_kernel,
            programs,
            features,
            memory,
            *labels,
            flags,
            prefixes,
            left,
            counts,
            step,
            shift,
            shifts[max(step - 1, 0)],
            span,
            batch_size,
            n,
            d,
            SETS=sets,
            PRECISION=precision,
            **{**tile.options(), "maxnreg": REGISTERS},
        )
    launching.launch(
        last_digit_kernel,
        launching.blocks_of(sets * batch_size, ROWS_AT_ONCE),
        flags,
        prefixes,
        left,
        counts,
        thresholds,
        len(shifts),
        sets * batch_size,
        BLOCK=ROWS_AT_ONCE,
    )
