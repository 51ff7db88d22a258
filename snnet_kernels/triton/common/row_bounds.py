"""How far a product of bf16-rounded rows can be from the one in "ieee" precision."""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .products import load_rows

BLOCK_ROWS, BLOCK_DEPTH = 16, 256


class RowBounds(NamedTuple):
    """Of each row of a matrix: |a·b − a'·b'| <= residual(a) norm(b) + norm(a) residual(b), ' being rounded."""

    norms: Tensor  # fp32 [n]
    residuals: Tensor  # fp32 [n]


@triton.jit(do_not_specialize=["n"])
def row_bounds_kernel(
    matrix, norms, residuals, n, d, slack, BLOCK_ROWS: tl.constexpr, BLOCK_DEPTH: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    rows = tl.minimum(rows, n - 1)  # the last is stored again
    square = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    lost = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    for k in range(0, d, BLOCK_DEPTH):
        exact = load_rows(matrix, d, rows, k, d, BLOCK_DEPTH)
        rounded = exact.to(tl.bfloat16).to(tl.float32)
        square += tl.maximum(exact * exact, rounded * rounded)
        lost += (exact - rounded) * (exact - rounded)
    # The factor covers the rounding of these sums themselves.
    norm = tl.sqrt(tl.sum(square, 1)) * 1.0001
    residual = tl.sqrt(tl.sum(lost, 1)) * 1.0001
    tl.store(norms + rows, norm)
    tl.store(residuals + rows, residual + slack * norm)


def row_bounds(matrix: Tensor) -> RowBounds:
    """The bounds of every row of fp32 [n, d], one pass over it."""
    n, d = matrix.shape
    norms, residuals = (torch.empty(n, dtype=torch.float32, device=matrix.device) for _ in range(2))
    # A sum of d terms in fp32, by multiply-adds or by tensor cores, is off by at most d 2⁻²³ |a| |b|.
    slack = (d + 64) * 2.0**-23
    launching.launch(
        row_bounds_kernel,
        launching.blocks_of(n, BLOCK_ROWS),
        matrix,
        norms,
        residuals,
        n,
        d,
        slack,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_DEPTH=BLOCK_DEPTH,
        num_warps=8,
    )
    return RowBounds(norms, residuals)
