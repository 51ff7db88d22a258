"""The mutual label loss of kind ``mmcl`` and its gradient in two passes over the memory: thresholds, then both."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launching, loss_gradient
from .common.entries import column_of_key, ordered_bits, ordered_of_key
from .common.hardest_negatives import hardest_negatives
from .common.launching import Tile
from .common.loss_gradient import REGISTERS, active_labels, add_slope_products, label_tile, partials
from .common.products import tile_products, unknown_zero


@triton.jit
def add_label_set(
    half_slope,  # fp32 [BLOCK_A, BLOCK_B], in and out
    loss,  # fp32 [BLOCK_A, BLOCK_B], in and out
    products,
    ordered,
    column,  # int32 [1, BLOCK_B]
    positive,
    inside,
    thresholds,  # int64 [BLOCK_A] pointers
    positive_weights,
    negative_weights,
):
    """Half of dL/ds and L of one label set added to those of the others."""
    # Keys are compared half by half: whole ones would take twice the registers.
    threshold = tl.load(thresholds)
    bar = ordered_of_key(threshold)[:, None]
    hard = (ordered > bar) | ((ordered == bar) & (column <= column_of_key(threshold)[:, None]))
    hard = hard & inside
    weight = tl.where(hard, tl.load(negative_weights)[:, None], 0.0)
    weight = tl.where(positive != 0, tl.load(positive_weights)[:, None], weight)
    difference = products - tl.where(positive != 0, 1.0, -1.0)
    counts = (positive != 0) | hard
    part = tl.where(counts, weight * difference, 0.0)
    return half_slope + part, loss + tl.where(counts, part * difference, 0.0)


@triton.jit(do_not_specialize=["batch_size", "n", "span"])
def hard_negative_loss_kernel(
    features,  # fp32 [B, d]
    memory,  # fp32 [n, d]
    labels_0,  # uint8 [B, L]
    labels_1,
    labels_2,
    thresholds,  # int64 [SETS, B]
    positive_weights,  # fp32 [SETS, B]
    negative_weights,  # fp32 [SETS, B]
    gradient,  # fp32 [programs, d / BLOCK_B, BLOCK_A, BLOCK_B]: out, half of it
    loss,  # fp64 [programs]: out
    slopes,  # fp32 [programs, HELD / BLOCK_B, BLOCK_A, BLOCK_B]
    span,
    batch_size,
    n,
    d,
    SETS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Programs that run together share columns, so that the memory is read once.
    row_tiles = tl.cdiv(batch_size, BLOCK_A)
    place = tl.arange(0, BLOCK_A)
    sample = (tl.program_id(0) % row_tiles) * BLOCK_A + place
    in_batch = sample < batch_size
    # Rows past the batch repeat its last; their gradient is cut off, their loss is not counted.
    sample = tl.minimum(sample, batch_size - 1).to(tl.int64)
    gradient += tl.program_id(0).to(tl.int64) * (tl.cdiv(d, BLOCK_B) * (BLOCK_A * BLOCK_B))
    slopes += tl.program_id(0).to(tl.int64) * (BLOCK_A * HELD)
    total = tl.zeros((), tl.float64)
    start = (tl.program_id(0) // row_tiles) * span
    end = tl.minimum(start + span, n)
    for first in tl.range(start, end, HELD, disable_licm=True):
        filled = tl.minimum(tl.cdiv(end - first, BLOCK_B) * BLOCK_B, HELD)
        entries = tl.zeros((), tl.int32)
        for offset in tl.range(0, filled, BLOCK_B, disable_licm=True):
            column = first + offset + tl.arange(0, BLOCK_B)
            inside = (column < n)[None, :]
            row = tl.minimum(column, n - 1).to(tl.int64)
            products = tile_products(
                features, d, sample, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
            )
            ordered = ordered_bits(products)
            half_slope = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
            part = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
            label_row = sample + unknown_zero(offset)
            for label_set in range(SETS):
                labels = tl.where(label_set == 0, labels_0, tl.where(label_set == 1, labels_1, labels_2))
                positive = label_tile(labels, label_row, first + offset, n, BLOCK_A, BLOCK_B)
                of_set = label_set * batch_size + label_row
                half_slope, part = add_label_set(
                    half_slope,
                    part,
                    products,
                    ordered,
                    column[None, :],
                    positive,
                    inside,
                    thresholds + of_set,
                    positive_weights + of_set,
                    negative_weights + of_set,
                )
            total += tl.sum(tl.where(in_batch, tl.sum(part, 1), 0.0), 0).to(tl.float64)
            entries = tl.maximum(entries, tl.max(tl.max((half_slope != 0).to(tl.int32), 1), 0))
            held = place[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
            tl.store(slopes + offset * BLOCK_A + held, half_slope)
        # The first product writes the gradient even if it has nothing to add.
        if (entries > 0) | (first == start):
            tl.debug_barrier()
            add_slope_products(
                slopes,
                memory,
                gradient,
                first,
                tl.where(entries > 0, filled, 0),
                first > start,
                n,
                d,
                BLOCK_A,
                BLOCK_B,
                BLOCK_K,
                PRECISION,
            )
            tl.debug_barrier()
    tl.store(loss + tl.program_id(0), total)


def hard_negative_loss(
    features: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    delta: float,
    hard_negative_ratio: float,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """(loss [], dL/df [B, d]) as :func:`snnet_kernels.fused_mutual_label_loss` defines ``kind="mmcl"``.

    Bound by its three products: similarities for the thresholds, again for the slopes, and slopes · memory. Columns
    without an entry of the loss are left out of the last where ``HELD`` of them stand together.

    Args:
        features: fp32 [B, d].
        memory: fp32 [n, d], contiguous.
        labels: one to three packed label sets uint8 [B, label_bytes(n)], contiguous.
        weights: of each label set; sets of weight 0 are left out.
        delta: weight of the positives.
        hard_negative_ratio: share of the negatives that count, rounded down, at least one.
        precision: of all products, one of ``PRECISIONS``; "bf16" is taken as "ieee".
    """
    (batch_size, d), n = features.shape, memory.shape[0]
    if batch_size == 0 or n == 0:
        return features.new_zeros(()), torch.zeros_like(features)
    labels, weights = active_labels(labels, weights)
    precision = "ieee" if precision == "bf16" else precision
    features = features.contiguous()
    sets = len(labels)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        hard = hardest_negatives(
            features, memory, labels, weights, delta, hard_negative_ratio, precision, tile
        )
        parts = partials(batch_size, n, d, tile, memory.device)
        launching.launch(
            hard_negative_loss_kernel,
            parts.programs,
            features,
            memory,
            *(labels[min(k, sets - 1)] for k in range(3)),
            *hard,
            *parts,
            batch_size,
            n,
            d,
            SETS=sets,
            HELD=loss_gradient.HELD,
            PRECISION=precision,
            **{**tile.options(), "maxnreg": REGISTERS},
        )
        loss, gradient = parts.reduce(batch_size, d)
        return loss, gradient.mul_(2)

    return launching.with_fastest_tile(
        ("hard_negative_loss", precision, sets),
        launching.TILES[precision],
        memory.device,
        (batch_size, n, d),
        run,
    )
