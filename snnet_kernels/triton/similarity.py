"""s = f Mᵀ, for the precisions that a plain matrix product of torch does not offer."""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .launching import Tile
from .products import tile_products


@triton.jit(do_not_specialize=["batch_size", "n"])
def similarity_kernel(
    features,  # fp32 [B, d]
    memory,  # fp32 [n, d] of rows memory_stride apart
    similarity,  # fp32 [B, n]
    batch_size,
    n,
    d,
    memory_stride,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
):
    # A group of row tiles passes over the columns together, so that both operands are found in the L2 cache.
    row_tiles = tl.cdiv(batch_size, BLOCK_A)
    column_tiles = tl.cdiv(n, BLOCK_B)
    in_group = tl.program_id(0) % (TILES_TOGETHER * column_tiles)
    first_tile = tl.program_id(0) // (TILES_TOGETHER * column_tiles) * TILES_TOGETHER
    tiles = tl.minimum(row_tiles - first_tile, TILES_TOGETHER)
    sample = (first_tile + in_group % tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    column = in_group // tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    products = tile_products(
        features,
        d,
        tl.minimum(sample, batch_size - 1).to(tl.int64),
        memory,
        memory_stride,
        tl.minimum(column, n - 1).to(tl.int64),
        d,
        BLOCK_A,
        BLOCK_B,
        BLOCK_K,
        PRECISION,
    )
    place = sample.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(similarity + place, products, mask=(sample < batch_size)[:, None] & (column < n)[None, :])


def memory_similarity(features: Tensor, memory: Tensor, precision: str = "ieee") -> Tensor:
    """features memoryᵀ, fp32 [B, n], in one of ``PRECISIONS``; with the memory itself as features the cache.

    Args:
        features: fp32 [B, d].
        memory: fp32 [n, d]; its rows may lie apart. Other strides cost a copy.
    """
    batch_size, (n, d) = features.shape[0], memory.shape
    if batch_size == 0 or n == 0:
        return torch.empty(batch_size, n, dtype=torch.float32, device=memory.device)
    # The kernel reads along rows; a transposed operand, as in the backward product, is laid out anew.
    features = features.contiguous()
    memory = memory if memory.stride(1) == 1 else memory.contiguous()

    def run(tile: Tile) -> Tensor:
        similarity = torch.empty(batch_size, n, dtype=torch.float32, device=memory.device)
        launching.launch(
            similarity_kernel,
            launching.blocks_of(batch_size, tile.rows) * launching.blocks_of(n, tile.columns),
            features,
            memory,
            similarity,
            batch_size,
            n,
            d,
            memory.stride(0),
            PRECISION=precision,
            TILES_TOGETHER=8,
            **tile.options(),
        )
        return similarity

    return launching.with_fastest_tile("similarity", memory.device, precision, (batch_size, n, d), run)
