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
from .entries import ordered_bits
from .launching import Tile
from .loss_gradient import REGISTERS, label_tile, programs_of_columns
from .products import tile_products, unknown_zero

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
def store_prefix(prefixes, left, counts, step, shift_before, place, plane, mask):
    """The result of :func:`chosen_before` left for this step and the next."""
    prefix, rank = chosen_before(prefixes, left, counts, step, shift_before, place, plane)
    now = step.to(tl.int64) * plane + place
    tl.store(prefixes + now, prefix.to(tl.int64, bitcast=True), mask=mask)
    tl.store(left + now, rank, mask=mask)


@triton.jit
def add_digits(
    prefixes,
    counts,
    place,  # int64 [BLOCK_A], of the samples in [steps, SETS, B]
    value_half,  # uint32 [BLOCK_A, BLOCK_B]
    half,
    match,
    shift,
):
    """Count the digits at ``shift`` of the keys that ``match`` and begin with the prefix.

    ``half`` is the half of a key that has the digit, ``value_half`` the upper one.
    """
    prefix = tl.load(prefixes + place).to(tl.uint64, bitcast=True)
    value_prefix = (prefix >> 32).to(tl.uint32)
    prefix_half = tl.where(shift >= 32, value_prefix, prefix.to(tl.uint32))[:, None]
    match = match & ((((half ^ prefix_half) >> (shift & 31)) >> DIGIT_BITS) == 0)
    match = match & ((shift >= 32) | (value_half == value_prefix[:, None]))
    digits = tl.where(match, ((half >> (shift & 31)) & (DIGITS - 1)).to(tl.int32), -1)
    for digit in range(DIGITS):
        count = tl.sum((digits == digit).to(tl.int32), 1)
        tl.atomic_add(counts + place * DIGITS + digit, count, mask=count > 0, sem="relaxed")


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
        plane = SETS * batch_size.to(tl.int64)
        if step > 0:  # every program stores what it reads below; those of one row store the same
            for k in tl.static_range(SETS):
                place = k * batch_size + sample
                store_prefix(prefixes, left, counts, step, shift_before, place, plane, flagged)
            tl.debug_barrier()
        for first in tl.range(start, tl.minimum(start + span, n), BLOCK_B, disable_licm=True):
            column = first + tl.arange(0, BLOCK_B)
            row = tl.minimum(column, n - 1).to(tl.int64)
            products = tile_products(
                features, d, sample, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
            )
            # The key as two unsigned halves: whole ones would take twice the registers.
            value_half = ordered_bits(products).to(tl.uint32, bitcast=True) ^ (1 << 31)
            half = tl.where(shift >= 32, value_half, (0x7FFFFFFF - column).to(tl.uint32)[None, :])
            counted = flagged[:, None] & (column < n)[None, :]
            label_row = sample + unknown_zero(first)
            place = step * plane + label_row
            for label_set in range(SETS):
                labels = tl.where(label_set == 0, labels_0, tl.where(label_set == 1, labels_1, labels_2))
                positive = label_tile(labels, label_row, first, n, BLOCK_A, BLOCK_B)
                match = counted & (positive == 0)
                add_digits(prefixes, counts, place, value_half, half, match, shift)
                place += batch_size


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
    row = tl.minimum(row, rows - 1)  # the last is stored again
    prefix, _ = chosen_before(prefixes, left, counts, steps, 0, row, rows)
    threshold = (prefix ^ (1 << 63)).to(tl.int64, bitcast=True)
    tl.store(thresholds + row, threshold, mask=tl.load(flags + row) != 0)


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
    unknown_bits = column_digits * DIGIT_BITS.value
    known = 0x7FFFFFFF & ~((1 << unknown_bits) - 1)
    prefixes = torch.full((len(shifts), sets, batch_size), known, dtype=torch.int64, device=device)
    left = ranks.expand(len(shifts), -1, -1).contiguous()
    counts = torch.zeros(len(shifts), sets, batch_size, DIGITS.value, dtype=torch.int32, device=device)
    programs, span = programs_of_columns(batch_size, n, tile, device)
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
