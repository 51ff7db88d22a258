"""Which columns of the similarity rows of a batch lie above a bar, as bits."""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import label_bytes as bytes_of_labels
from . import launching
from .entries import label_bytes, pack_bits, value_of_key
from .launching import Tile
from .pairs import find_pairs, launch_over_pairs, mark_pairs, pair_keys, pairs_of_tile
from .products import tile_products
from .row_bounds import RowBounds

GIVEN_ROWS, GIVEN_COLUMNS = 4, 1024


@triton.jit(do_not_specialize=["batch_size", "n"])
def candidate_kernel(
    memory,  # fp32 [n, d]
    index,  # int64 [B]
    bars,  # fp32 [B]
    norms,  # fp32 [n], for bf16
    residuals,
    above,  # uint8 [B, L]
    near,  # uint8 [B, L], for bf16
    batch_size,
    n,
    d,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Programs that run together share columns, so that the memory is read once.
    row_tiles = tl.cdiv(batch_size, BLOCK_A)
    sample = (tl.program_id(0) % row_tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    column = (tl.program_id(0) // row_tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_batch = sample < batch_size
    image = tl.load(index + sample, mask=in_batch, other=0)
    image = tl.minimum(tl.maximum(image, 0), n - 1)
    row = tl.minimum(column, n - 1).to(tl.int64)
    products = tile_products(memory, d, image, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION)
    bar = tl.load(bars + sample, mask=in_batch, other=0.0)[:, None]
    inside = (column < n)[None, :]
    if PRECISION == "bf16":
        error = tl.load(residuals + image)[:, None] * tl.load(norms + row)[None, :]
        error += tl.load(norms + image)[:, None] * tl.load(residuals + row)[None, :]
        is_above = products - error > bar
        # Also where an infinite bound leaves NaN, of which nothing is known.
        is_near = ~(products + error < bar) & ~is_above & inside
    else:
        is_above = products > bar
        is_near = is_above
    tl.static_assert(128 % BLOCK_B == 0, "a row of bits, whole 128 of them, ends with a tile")
    byte = (tl.program_id(0) // row_tiles) * (BLOCK_B // 8) + tl.arange(0, BLOCK_B // 8)
    place = sample.to(tl.int64)[:, None] * label_bytes(n) + byte[None, :]
    tl.store(above + place, pack_bits(is_above & inside, BLOCK_A, BLOCK_B), mask=in_batch[:, None])
    if PRECISION == "bf16":
        tl.store(near + place, pack_bits(is_near, BLOCK_A, BLOCK_B), mask=in_batch[:, None])


@triton.jit(do_not_specialize=["batch_size", "n"])
def given_candidate_kernel(
    rows,  # fp32 [B, n]
    bar,
    above,  # uint8 [B, L]
    batch_size,
    n,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    row_tiles = tl.cdiv(batch_size, BLOCK_A)
    sample = (tl.program_id(0) % row_tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    column = (tl.program_id(0) // row_tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_batch = sample < batch_size
    mask = in_batch[:, None] & (column < n)[None, :]
    value = tl.load(rows + sample.to(tl.int64)[:, None] * n + column[None, :], mask=mask, other=0.0)
    width = label_bytes(n)
    byte = (tl.program_id(0) // row_tiles) * (BLOCK_B // 8) + tl.arange(0, BLOCK_B // 8)
    place = sample.to(tl.int64)[:, None] * width + byte[None, :]
    packed = pack_bits((value > bar) & mask, BLOCK_A, BLOCK_B)
    tl.store(above + place, packed, mask=in_batch[:, None] & (byte < width)[None, :])


@triton.jit(do_not_specialize=["batch_size", "blocks", "n"])
def recheck_kernel(
    ends,
    sizes,
    before,
    bits,
    memory,
    index,
    given,
    bars,  # fp32 [B]
    above,  # int32 [B, L / 4], in and out
    batch_size,
    blocks,
    n,
    d,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
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
        is_above = value_of_key(key) > tl.load(bars + sample)
        mark_pairs(above, sample, column, blocks, is_above)


def candidate_bits(
    memory: Tensor,  # fp32 [n, d]
    index: Tensor,  # int64 [B]
    bars: Tensor,  # fp32 [B]
    precision: str,
    bounds: RowBounds | None = None,
) -> tuple[Tensor, Tensor]:
    """Bits of the columns with S[index] > bars, uint8 [B, label_bytes(n)].

    In bf16 (``bounds`` given): those that surely are, and those too near the bar to tell; else (bits, bits).
    """
    batch_size, (n, d) = index.shape[0], memory.shape
    width = bytes_of_labels(n)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        above = torch.empty(batch_size, width, dtype=torch.uint8, device=memory.device)
        near = torch.empty_like(above) if bounds is not None else above
        launching.launch(
            candidate_kernel,
            launching.blocks_of(batch_size, tile.rows) * launching.blocks_of(8 * width, tile.columns),
            memory,
            index,
            bars,
            bars if bounds is None else bounds.norms,
            bars if bounds is None else bounds.residuals,
            above,
            near,
            batch_size,
            n,
            d,
            PRECISION=precision,
            **tile.options(),
        )
        return above, near

    return launching.with_fastest_tile(
        ("candidates", precision), launching.TILES[precision], memory.device, (batch_size, n, d), run
    )


def candidates(
    memory: Tensor,  # fp32 [n, d]
    index: Tensor,  # int64 [B]
    bars: Tensor,  # fp32 [B]
    precision: str,
    bounds: RowBounds | None = None,
) -> Tensor:
    """Bits of the columns with S[index] > bars, uint8 [B, label_bytes(n)]; in bf16 those of "ieee"."""
    above, near = candidate_bits(memory, index, bars, precision, bounds)
    if bounds is not None:
        launch_over_pairs(
            recheck_kernel, find_pairs(near), memory, index, None, bars, above.view(torch.int32)
        )
    return above


def given_candidates(rows: Tensor, bar: float) -> Tensor:
    """Bits of the entries of ``rows`` [B, n] above the bar, uint8 [B, label_bytes(n)]."""
    batch_size, n = rows.shape
    width = bytes_of_labels(n)
    above = torch.empty(batch_size, width, dtype=torch.uint8, device=rows.device)
    launching.launch(
        given_candidate_kernel,
        launching.blocks_of(batch_size, GIVEN_ROWS) * launching.blocks_of(8 * width, GIVEN_COLUMNS),
        rows,
        bar,
        above,
        batch_size,
        n,
        BLOCK_A=GIVEN_ROWS,
        BLOCK_B=GIVEN_COLUMNS,
    )
    return above
