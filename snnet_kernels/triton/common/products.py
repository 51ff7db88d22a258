"""Products of rows: whole tiles of them and pair by pair.

In "ieee" precision every product is the chain ``fma(a[k], b[k], ...)`` with k rising, whatever the tile's shape
and wherever in a tile the entry stands. So tiles of any configuration, single pairs and both orders of the
operands agree to the bit. In the other precisions this holds between tiles of one shape, in "tf32x3" with the
operands in one order.

Tensor cores cut their sums off, so that those of many terms are too small. In "tf32x3" Triton adds the products of
every BLOCK_K dimensions to the others in float32. In "tf32" and "bf16" there is one sum: there operands are rounded,
which weighs more.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

# The interpreter does not multiply bf16; rounded fp32 operands give the same products there.
_EMULATED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def load_rows(matrix, stride, rows, k, d, BLOCK_K: tl.constexpr):
    """matrix[rows, k : k + BLOCK_K], 0 past d; ``rows`` int64 [R] lie inside the matrix."""
    depth = k + tl.arange(0, BLOCK_K)
    return tl.load(matrix + rows[:, None] * stride + depth[None, :], mask=(depth < d)[None, :], other=0.0)


@triton.jit
def round_number_to_tf32(x):
    """:func:`round_to_tf32` where x is no NaN, or where it does not matter what becomes of one."""
    raised = tl.add(x.to(tl.int32, bitcast=True), 0x1000, sanitize_overflow=False)  # that of a NaN may wrap
    return (raised & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def round_to_tf32(x):
    """fp32 rounded to the 10 bits of mantissa of TF32, to nearest, ties away from zero; NaN as it is.

    As cvt.rna.tf32 does. Tensor cores read fp32 bits as they are and cut the last 13 off.
    """
    return tl.where(x == x, round_number_to_tf32(x), x)


@triton.jit
def multiply_add(a, b, products, PRECISION: tl.constexpr):
    """products + a b in the given precision."""
    if PRECISION == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
        if _EMULATED:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        products = tl.dot(a, b, products)
    else:
        if PRECISION == "tf32":
            a = round_to_tf32(a)
            b = round_to_tf32(b)
        products = tl.dot(a, b, products, input_precision=PRECISION)
    return products


@triton.jit
def unknown_zero(first):
    """0 for a ``first`` of at least 0, but not to the compiler.

    Addresses of a row's data are the same for all tiles of columns. Added to them this has them made anew for each
    tile; otherwise they would be kept in registers that the products need.
    """
    return tl.minimum(first, 0)


@triton.jit
def tile_products(
    a,
    a_stride,
    a_rows,  # int64 [BLOCK_A], inside a
    b,
    b_stride,
    b_rows,  # int64 [BLOCK_B], inside b
    d,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """a[a_rows] b[b_rows]ᵀ, fp32 [BLOCK_A, BLOCK_B]."""
    products = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    if PRECISION == "ieee":
        # Threads read the second operand four columns apart. With k contiguous in shared memory they would
        # all meet in the same banks; joining the rows in twos has the compiler store the columns side by side.
        even, odd = tl.split(tl.reshape(b_rows, (BLOCK_B // 2, 2)))
        for k in range(0, d, BLOCK_K):
            left = load_rows(a, a_stride, a_rows, k, d, BLOCK_K)
            right = tl.join(
                load_rows(b, b_stride, even, k, d, BLOCK_K), load_rows(b, b_stride, odd, k, d, BLOCK_K)
            )
            right = tl.reshape(tl.permute(right, (1, 0, 2)), (BLOCK_K, BLOCK_B))
            products = multiply_add(left, right, products, PRECISION)
    else:
        for k in range(0, d, BLOCK_K):
            left = load_rows(a, a_stride, a_rows, k, d, BLOCK_K)
            right = load_rows(b, b_stride, b_rows, k, d, BLOCK_K)
            products = multiply_add(left, tl.trans(right), products, PRECISION)
    return products


@triton.jit
def pair_products(
    a,
    a_stride,
    a_rows,  # int64 [BLOCK], inside a
    b,
    b_stride,
    b_rows,  # int64 [BLOCK], inside b
    d,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The products of a[a_rows[i]] and b[b_rows[i]], fp32 [BLOCK], in "ieee" precision."""
    products = tl.zeros((BLOCK, 1, 1), tl.float32)
    for k in tl.range(0, d, BLOCK_K, num_stages=2):
        left = load_rows(a, a_stride, a_rows, k, d, BLOCK_K)
        right = load_rows(b, b_stride, b_rows, k, d, BLOCK_K)
        products = tl.dot(left[:, None, :], right[:, :, None], products, input_precision="ieee")
    return tl.reshape(products, (BLOCK,))
