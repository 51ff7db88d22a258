"""s = f Mᵀ of three TF32 products, which a plain matrix product of torch does not offer.

x = big + small, both rounded to TF32: s = big·big + (small·big + big·small). Each of the three sums is kept by itself
and the last two are added to each other first, so that s of (a, b) and of (b, a) are the same bits.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launching
from .common.launching import Tile
from .common.products import load_rows, round_number_to_tf32, round_to_tf32

# Rows of the memory by features: a warp group has 64 of either, and three sums of 32 registers a thread.
TILES = (Tile(128, 64, 16, 8, 4), Tile(64, 64, 16, 4, 4))
# Tiles of features that pass over the memory together, so that both operands are found in the L2 cache.
TILES_TOGETHER = 8
SPLIT_AT_ONCE = 1024
# Tensor cores cut their sums off, so that those of many terms are too small. Sums of so many dimensions, a multiple of
# every tile's depth, are added up in float32.
SUMMED_BY_TENSOR_CORES = 128


@triton.jit(do_not_specialize=["size"])
def split_kernel(features, parts, size, BLOCK: tl.constexpr):
    """parts[0] = the features rounded to TF32, parts[1] = what that left of them, rounded too."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(features + place, mask=place < size, other=0.0)
    big = round_to_tf32(value)
    tl.store(parts + place, big, mask=place < size)
    tl.store(parts + size + place, round_number_to_tf32(value - big), mask=place < size)


@triton.jit(do_not_specialize=["batch_size", "n"])
def similarity_kernel(
    parts,  # fp32 [2, B, d]: the features, split
    memory,  # fp32 [n, d] of rows memory_stride apart
    similarity,  # fp32 [B, n]
    batch_size,
    n,
    d,
    memory_stride,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
    SUMMED_BY_TENSOR_CORES: tl.constexpr,
):
    feature_tiles = tl.cdiv(batch_size, BLOCK_B)
    memory_tiles = tl.cdiv(n, BLOCK_A)
    in_group = tl.program_id(0) % (TILES_TOGETHER * memory_tiles)
    first_tile = tl.program_id(0) // (TILES_TOGETHER * memory_tiles) * TILES_TOGETHER
    tiles = tl.minimum(feature_tiles - first_tile, TILES_TOGETHER)
    sample = (first_tile + in_group % tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = in_group // tiles * BLOCK_A + tl.arange(0, BLOCK_A)
    row = tl.minimum(column, n - 1).to(tl.int64)
    feature = tl.minimum(sample, batch_size - 1).to(tl.int64)
    remainders = parts + batch_size.to(tl.int64) * d
    both_big = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    part = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    memory_small = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    feature_small = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for k in range(0, d, BLOCK_K):
        # The memory is the left operand: that one tensor cores take from registers, where it is split.
        left = load_rows(memory, memory_stride, row, k, d, BLOCK_K)
        left_big = round_to_tf32(left)
        left_small = round_number_to_tf32(left - left_big)
        right_big = tl.trans(load_rows(parts, d, feature, k, d, BLOCK_K))
        right_small = tl.trans(load_rows(remainders, d, feature, k, d, BLOCK_K))
        # First of the three: behind the others it would spill.
        part = tl.dot(left_big, right_big, part, input_precision="tf32")
        if (k + BLOCK_K) % SUMMED_BY_TENSOR_CORES == 0:
            both_big += part
            part = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
        memory_small = tl.dot(left_small, right_big, memory_small, input_precision="tf32")
        feature_small = tl.dot(left_big, right_small, feature_small, input_precision="tf32")
    products = (both_big + part) + (memory_small + feature_small)
    place = sample.to(tl.int64)[None, :] * n + column[:, None]
    tl.store(similarity + place, products, mask=(sample < batch_size)[None, :] & (column < n)[:, None])


def memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    """features memoryᵀ, fp32 [B, n], of three TF32 products.

    Entries are finite or NaN: an infinite one gives some infinity or NaN.

    Args:
        features: fp32 [B, d].
        memory: fp32 [n, d]; its rows may lie apart. Other strides cost a copy.
    """
    (batch_size, d), n = features.shape, memory.shape[0]
    if batch_size == 0 or n == 0:
        return torch.empty(batch_size, n, dtype=torch.float32, device=memory.device)
    # The kernel reads along rows; a transposed operand is laid out anew.
    features = features.contiguous()
    memory = memory if memory.stride(1) == 1 else memory.contiguous()
    parts = torch.empty(2, batch_size, d, dtype=torch.float32, device=features.device)
    size = batch_size * d
    launching.launch(
        split_kernel,
        launching.blocks_of(size, SPLIT_AT_ONCE),
        features,
        parts,
        size,
        BLOCK=SPLIT_AT_ONCE,
    )

    def run(tile: Tile) -> Tensor:
        similarity = torch.empty(batch_size, n, dtype=torch.float32, device=memory.device)
        launching.launch(
            similarity_kernel,
            launching.blocks_of(n, tile.rows) * launching.blocks_of(batch_size, tile.columns),
            parts,
            memory,
            similarity,
            batch_size,
            n,
            d,
            memory.stride(0),
            TILES_TOGETHER=TILES_TOGETHER,
            SUMMED_BY_TENSOR_CORES=SUMMED_BY_TENSOR_CORES,
            **tile.options(),
        )
        return similarity

    return launching.with_fastest_tile(("similarity",), TILES, memory.device, (batch_size, n, d), run)
