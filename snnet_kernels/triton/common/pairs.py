"""The pairs (sample, column) whose bits are set, counted off in order: sample by sample, columns rising.

Kernels find the pairs of a range in the bits themselves, so that nothing grows with the number of pairs; what
is kept is one count for every 16 bytes of bits.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .entries import count_bits, selection_key
from .products import pair_products

BLOCKS_AT_ONCE = 256
PAIRS_AT_ONCE = 64
PAIR_DEPTH = 32
PROGRAMS_PER_PROCESSOR = 8


class Pairs(NamedTuple):
    bits: Tensor  # uint8 [B, L]
    before: Tensor  # int32 [B, L / 16]: bits set in the row before each 16 bytes
    sizes: Tensor  # int64 [B]: bits set in the row, or 0 for a row whose pairs are left out
    ends: Tensor  # int64 [B]: running sum of the sizes

    @property
    def blocks(self) -> int:
        return self.before.shape[1]


@triton.jit(do_not_specialize=["blocks"])
def count_blocks_kernel(bits, before, sizes, blocks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), tl.int32)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        inside = block < blocks
        place = row * blocks + block
        word = tl.load(bits + 16 * place[:, None] + tl.arange(0, 16)[None, :], mask=inside[:, None], other=0)
        size = tl.sum(count_bits(word.to(tl.int32)), 1)
        tl.store(before + place, total + tl.cumsum(size, 0) - size, mask=inside)
        total += tl.sum(size, 0)
    tl.store(sizes + row, total.to(tl.int64))


@triton.jit
def pairs_of_tile(tile, total, BLOCK: tl.constexpr):
    """The pairs int64 [BLOCK] of a tile; the last is repeated: what is done with a pair may be done twice."""
    return tl.minimum(tile * BLOCK + tl.arange(0, BLOCK), total - 1)


@triton.jit
def locate_pairs(pair, ends, sizes, before, bits, batch_size, blocks, BLOCK: tl.constexpr):
    """(sample int32, column int32) [BLOCK] of pairs number ``pair`` int64 [BLOCK]."""
    # The sample: the first whose pairs end behind this one.
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + (batch_size - 1)
    left = batch_size
    while left > 0:
        middle = (low + high) // 2
        behind = tl.load(ends + middle) > pair
        low = tl.where(behind | (low >= high), low, middle + 1)
        high = tl.where(behind, middle, high)
        left = left // 2
    sample = low
    rank = (pair - tl.load(ends + sample) + tl.load(sizes + sample)).to(tl.int32)
    # The block: the last with no more bits before it than this one has.
    row = sample.to(tl.int64) * blocks
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + (blocks - 1)
    left = blocks
    while left > 0:
        middle = (low + high + 1) // 2
        reached = tl.load(before + row + middle) <= rank
        high = tl.where(reached, high, tl.maximum(middle - 1, low))
        low = tl.where(reached, middle, low)
        left = left // 2
    row += low
    rank -= tl.load(before + row)
    # The byte, the bit.
    size = count_bits(tl.load(bits + 16 * row[:, None] + tl.arange(0, 16)[None, :]).to(tl.int32))
    done = tl.cumsum(size, 1) <= rank[:, None]
    byte = tl.minimum(tl.sum(done.to(tl.int32), 1), 15)
    rank -= tl.sum(tl.where(done, size, 0), 1)
    value = tl.load(bits + 16 * row + byte).to(tl.int32)
    up_to = count_bits(value[:, None] & ((2 << tl.arange(0, 8)[None, :]) - 1))
    place = tl.sum((up_to <= rank[:, None]).to(tl.int32), 1)
    return sample, 128 * low + 8 * byte + tl.minimum(place, 7)


@triton.jit
def number_pairs(sample, column, ends, sizes, before, bits, blocks):
    """The numbers int64 [BLOCK] of pairs whose bits are set, in samples that are not left out."""
    row = sample.to(tl.int64) * blocks + column // 128
    byte = ((column % 128) // 8)[:, None]
    bit = (column % 8)[:, None]
    lane = tl.arange(0, 16)[None, :]
    value = tl.load(bits + 16 * row[:, None] + lane).to(tl.int32)
    lower = tl.where(lane < byte, value, tl.where(lane == byte, value & ((1 << bit) - 1), 0))
    rank = tl.load(before + row) + tl.sum(count_bits(lower), 1)
    return tl.load(ends + sample) - tl.load(sizes + sample) + rank


@triton.jit
def mark_pairs(words, sample, column, blocks, mask):
    """Set bits (sample, column) of int32 words [B, 4 blocks], on a little-endian device label bits."""
    place = sample.to(tl.int64) * (4 * blocks) + column // 32
    tl.atomic_or(words + place, 1 << (column % 32), mask=mask)


@triton.jit
def pair_keys(
    pair,  # int64 [BLOCK]
    ends,
    sizes,
    before,
    bits,
    memory,  # fp32 [n, d]
    index,  # int64 [B]
    given,  # fp32 [B, n] where GIVEN
    batch_size,
    blocks,
    n,
    d,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(sample, column, key int64) [BLOCK] of the pairs; the similarity is given or made in "ieee" precision."""
    sample, column = locate_pairs(pair, ends, sizes, before, bits, batch_size, blocks, BLOCK)
    column = tl.minimum(column, n - 1)
    if GIVEN:
        value = tl.load(given + sample.to(tl.int64) * n + column)
    else:
        image = tl.load(index + sample)
        image = tl.minimum(tl.maximum(image, 0), n - 1)
        value = pair_products(memory, d, image, memory, d, column.to(tl.int64), d, BLOCK, BLOCK_K)
    return sample, column, selection_key(value, column)


@triton.jit(do_not_specialize=["batch_size", "blocks", "n"])
def largest_key_kernel(
    ends,
    sizes,
    before,
    bits,
    memory,
    index,
    given,
    ceilings,  # int64 [B]
    largest,  # int64 [B], in and out
    batch_size,
    blocks,
    n,
    d,
    OTHERS: tl.constexpr,  # leave out the pair of a sample with itself
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Raise ``largest`` to the largest key of a sample's pairs that is below its ceiling."""
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
        valid = key < tl.load(ceilings + sample)
        if OTHERS:
            valid = valid & (column != tl.load(index + sample))
        tl.atomic_max(largest + sample, key, mask=valid)


def find_pairs(bits: Tensor) -> Pairs:
    """The pairs of ``bits`` uint8 [B, L], B and L not 0."""
    batch_size, width = bits.shape
    before = torch.empty(batch_size, width // 16, dtype=torch.int32, device=bits.device)
    sizes = torch.empty(batch_size, dtype=torch.int64, device=bits.device)
    launching.launch(count_blocks_kernel, batch_size, bits, before, sizes, width // 16, BLOCK=BLOCKS_AT_ONCE)
    return Pairs(bits, before, sizes, sizes.cumsum(0))


def launch_over_pairs(
    kernel: Any,
    pairs: Pairs,
    memory: Tensor,
    index: Tensor,
    given: Tensor | None,
    *arguments: Tensor,
    **options: int,
) -> None:
    """Launch a kernel that takes the pairs tile by tile."""
    n, d = memory.shape
    launching.launch(
        kernel,
        PROGRAMS_PER_PROCESSOR * launching.processors(memory.device),
        pairs.ends,
        pairs.sizes,
        pairs.before,
        pairs.bits,
        memory,
        index,
        memory if given is None else given,
        *arguments,
        index.shape[0],
        pairs.blocks,
        n,
        d,
        GIVEN=given is not None,
        BLOCK=PAIRS_AT_ONCE,
        BLOCK_K=PAIR_DEPTH,
        num_warps=2,
        **options,
    )
