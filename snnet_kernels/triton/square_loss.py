"""The mutual label loss of kind ``l2`` and its gradient in one pass over the memory."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launching, loss_gradient
from .common.launching import Tile
from .common.loss_gradient import REGISTERS, active_labels, add_slope_products, label_tile, partials
from .common.products import tile_products


@triton.jit(do_not_specialize=["batch_size", "n", "span"])
def square_loss_kernel(
    features,  # fp32 [B, d]
    memory,  # fp32 [n, d]
    labels_0,  # uint8 [B, L]
    labels_1,
    labels_2,
    weight_0,
    weight_1,
    weight_2,
    gradient,  # fp32 [programs, d / BLOCK_B, BLOCK_A, BLOCK_B]: out
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
    split = tl.program_id(0) // row_tiles
    place = tl.arange(0, BLOCK_A)
    sample = (tl.program_id(0) % row_tiles) * BLOCK_A + place
    in_batch = sample < batch_size
    # Rows past the batch repeat its last; their gradient is cut off, their loss is not counted.
    sample = tl.minimum(sample, batch_size - 1).to(tl.int64)
    gradient += tl.program_id(0).to(tl.int64) * (tl.cdiv(d, BLOCK_B) * (BLOCK_A * BLOCK_B))
    slopes += tl.program_id(0).to(tl.int64) * (BLOCK_A * HELD)
    total = tl.zeros((), tl.float64)
    start = split * span
    end = tl.minimum(start + span, n)
    for first in tl.range(start, end, HELD, disable_licm=True):
        filled = tl.minimum(tl.cdiv(end - first, BLOCK_B) * BLOCK_B, HELD)
        for offset in tl.range(0, filled, BLOCK_B, disable_licm=True):
            column = first + offset + tl.arange(0, BLOCK_B)
            inside = (column < n)[None, :]
            column = tl.minimum(column, n - 1)
            difference = tile_products(
                features, d, sample, memory, d, column.to(tl.int64), d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
            )
            # Σ_k λ_k (s − y_k)² = (s − ȳ)² + ȳ (1 − ȳ) because y² = y.
            mean = weight_0 * label_tile(labels_0, sample, first + offset, n, BLOCK_A, BLOCK_B)
            if SETS > 1:
                mean += weight_1 * label_tile(labels_1, sample, first + offset, n, BLOCK_A, BLOCK_B)
            if SETS > 2:
                mean += weight_2 * label_tile(labels_2, sample, first + offset, n, BLOCK_A, BLOCK_B)
            difference = tl.where(inside, difference - mean, 0.0)
            part = tl.sum(difference * difference + mean * (1.0 - mean), 1)
            part = tl.where(in_batch, part, 0.0)
            total += tl.sum(part, 0).to(tl.float64)
            held = place[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
            tl.store(slopes + offset * BLOCK_A + held, difference)
        tl.debug_barrier()
        add_slope_products(
            slopes,
            memory,
            gradient,
            first,
            filled,
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


def square_loss(
    features: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """(loss [], dL/df [B, d]) as :func:`snnet_kernels.fused_mutual_label_loss` defines ``kind="l2"``.

    Its two products bound it. Its scratch is at most ``PARTIAL_BYTES`` and ``HELD`` columns of slopes a program,
    which stay in L2; an all-tf32 product is bound by the L2 reads of the memory, 4 / BLOCK_A bytes a multiply-add.

    Args:
        features: fp32 [B, d].
        memory: fp32 [n, d], contiguous.
        labels: one to three packed label sets uint8 [B, label_bytes(n)], contiguous.
        weights: of each label set; sets of weight 0 are left out.
        precision: of both products, one of ``PRECISIONS``; "bf16" is taken as "ieee".
    """
    (batch_size, d), n = features.shape, memory.shape[0]
    if batch_size == 0 or n == 0:
        return features.new_zeros(()), torch.zeros_like(features)
    labels, weights = active_labels(labels, weights)
    precision = "ieee" if precision == "bf16" else precision
    features = features.contiguous()
    sets = len(labels)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        parts = partials(batch_size, n, d, tile, memory.device)
        launching.launch(
            square_loss_kernel,
            parts.programs,
            features,
            memory,
            *(labels[min(k, sets - 1)] for k in range(3)),
            *(weights[min(k, sets - 1)] for k in range(3)),
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
        return loss.div_(batch_size), gradient.mul_(2 / batch_size)

    return launching.with_fastest_tile(
        ("square_loss", precision, sets), launching.TILES[precision], memory.device, (batch_size, n, d), run
    )
