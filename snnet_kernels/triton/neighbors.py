"""The most similar other images, fused with the product.

A program keeps the best few keys of its rows over a range of columns in registers; the ranges are merged. More
neighbours than a program keeps are found in several passes, each below the last key of the one before.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import get_matmul_precision
from .common import launching
from .common.candidates import candidate_bits
from .common.entries import (
    HIGHEST,
    NOTHING,
    column_of_key,
    join_key,
    ordered_bits,
    ordered_of_key,
    value_of_key,
)
from .common.launching import Tile
from .common.pairs import find_pairs, largest_key_kernel, launch_over_pairs
from .common.products import tile_products, unknown_zero
from .common.row_bounds import RowBounds, row_bounds

KEPT = 16
KEYS_AT_ONCE = 1024
GIVEN_TILE = Tile(16, 128, 8, 4, 1)
_NOTHING = tl.constexpr(NOTHING)


@triton.jit
def next_key(ordered, column, counted, ceiling):
    """The largest key below the ceiling among the counted entries of each row, int64 [BLOCK_A], or NOTHING."""
    highest = ordered_of_key(ceiling)[:, None]
    counted = counted & (
        (ordered < highest) | ((ordered == highest) & (column[None, :] > column_of_key(ceiling)[:, None]))
    )
    largest = tl.max(tl.where(counted, ordered, -0x80000000), 1)
    column = tl.where(counted & (ordered == largest[:, None]), column[None, :], 0x7FFFFFFF)
    column = tl.min(column, 1)
    return tl.where(column == 0x7FFFFFFF, _NOTHING, join_key(largest, column))


@triton.jit(do_not_specialize=["batch_size", "n", "span"])
def nearest_kernel(
    memory,  # fp32 [n, d]
    index,  # int64 [B]
    given,  # fp32 [B, n] where GIVEN
    norms,  # fp32 [n], for bf16
    residuals,
    ceilings,  # int64 [B]
    keys,  # int64 [parts, B, KEPT]: out, the largest below the ceiling in each part, in no order
    batch_size,
    n,
    d,
    span,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GIVEN: tl.constexpr,
    KEPT: tl.constexpr,
    NOTHING: tl.constexpr,
):
    # Programs that run together share columns.
    row_tiles = tl.cdiv(batch_size, BLOCK_A)
    sample = (tl.program_id(0) % row_tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    part = tl.program_id(0) // row_tiles
    in_batch = sample < batch_size
    image = tl.load(index + sample, mask=in_batch, other=0)
    image = tl.minimum(tl.maximum(image, 0), n - 1)
    place = tl.arange(0, KEPT)
    # The best keys stay in memory: registers are for the products.
    own_keys = keys + (part.to(tl.int64) * batch_size + sample)[:, None] * KEPT + place[None, :]
    tl.store(own_keys, tl.full((BLOCK_A, KEPT), NOTHING, tl.int64), mask=in_batch[:, None])
    tl.debug_barrier()
    end = tl.minimum((part + 1) * span, n)
    for first in range(part * span, end, BLOCK_B):
        column = first + tl.arange(0, BLOCK_B)
        row = tl.minimum(column, n - 1).to(tl.int64)
        if GIVEN:
            value = tl.load(
                given + sample.to(tl.int64)[:, None] * n + row[None, :], mask=in_batch[:, None], other=0.0
            )
        else:
            value = tile_products(memory, d, image, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION)
        if PRECISION == "bf16":  # at least so much; nothing is known of an entry with an infinite bound
            own_row = image + unknown_zero(first)
            error = tl.load(residuals + own_row)[:, None] * tl.load(norms + row)[None, :]
            error += tl.load(norms + own_row)[:, None] * tl.load(residuals + row)[None, :]
            value -= error
            value = tl.where(value == value, value, float("-inf"))
        ordered = ordered_bits(value)
        own = tl.load(index + sample, mask=in_batch, other=0)
        counted = (column < end)[None, :] & (column[None, :] != own[:, None])
        # The entries of a row in falling order, as long as one of them is among the best of its row.
        key = next_key(ordered, column, counted, tl.load(ceilings + sample, mask=in_batch, other=NOTHING))
        best = tl.load(own_keys, mask=in_batch[:, None], other=0)
        while tl.max((in_batch & (key > tl.min(best, 1))).to(tl.int32), 0) > 0:
            replaced = tl.argmin(best, 1)[:, None] == place[None, :]
            best = tl.where(replaced & (key[:, None] > best), key[:, None], best)
            tl.debug_barrier()  # every warp has read what is overwritten
            tl.store(own_keys, best, mask=in_batch[:, None])
            tl.debug_barrier()
            key = next_key(ordered, column, counted, key)
            best = tl.load(own_keys, mask=in_batch[:, None], other=0)


@triton.jit(do_not_specialize=["size"])
def read_keys_kernel(keys, columns, values, size, BLOCK: tl.constexpr, NOTHING: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    key = tl.load(keys + place, mask=mask, other=NOTHING)
    tl.store(columns + place, tl.where(key == NOTHING, -1, column_of_key(key)).to(tl.int64), mask=mask)
    tl.store(values + place, tl.where(key == NOTHING, float("-inf"), value_of_key(key)), mask=mask)


def nearest_neighbors(
    memory: Tensor,
    index: Tensor,
    query_rows: Tensor | None,
    k: int,
    *,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(index int64 [B, k], similarity fp32 [B, k]) as :func:`snnet_kernels.nearest_neighbors` defines them.

    "bf16" gives what "ieee" gives: rounded products only sort out what cannot be among the k. Arguments as for
    :func:`.label_prediction.mplp`; scratch is B k keys and 16 keys for each row a program has.
    """
    precision = precision or get_matmul_precision()
    batch_size, (n, _) = index.shape[0], memory.shape
    keys = torch.full((batch_size, k), NOTHING, dtype=torch.int64, device=memory.device)
    others = min(k, n - 1)
    index = index.contiguous()
    query_rows = None if query_rows is None else query_rows.contiguous()
    if batch_size > 0 and others > 0:
        if query_rows is not None:
            _search(memory, index, query_rows, keys[:, :others], "ieee")
        elif precision == "bf16":
            _search_rounded(memory, index, keys[:, :others])
        else:
            _search(memory, index, None, keys[:, :others], precision)
    return _read_keys(keys)


def _search(
    memory: Tensor,
    index: Tensor,
    query_rows: Tensor | None,
    keys: Tensor,  # int64 [B, k]: out, falling
    precision: str,
    bounds: RowBounds | None = None,
) -> None:
    batch_size, (n, d), k = index.shape[0], memory.shape, keys.shape[1]
    kept = 1 if k == 1 else KEPT
    ceilings = torch.full((batch_size,), HIGHEST, dtype=torch.int64, device=memory.device)

    def run(tile: Tile) -> Tensor:
        tile = tile._replace(registers=255)
        parts, span = launching.parts_of_columns(batch_size, n, tile, memory.device)
        best = torch.empty(parts, batch_size, kept, dtype=torch.int64, device=memory.device)
        launching.launch(
            nearest_kernel,
            parts * launching.blocks_of(batch_size, tile.rows),
            memory,
            index,
            memory if query_rows is None else query_rows,
            memory if bounds is None else bounds.norms,
            memory if bounds is None else bounds.residuals,
            ceilings,
            best,
            batch_size,
            n,
            d,
            span,
            PRECISION=precision,
            GIVEN=query_rows is not None,
            KEPT=kept,
            NOTHING=NOTHING,
            **tile.options(),
        )
        return best

    for found in range(0, k, kept):
        if query_rows is not None:
            best = run(GIVEN_TILE)
        else:
            kernel = ("neighbors", precision, kept)
            tiles = launching.TILES[precision]
            best = launching.with_fastest_tile(kernel, tiles, memory.device, (batch_size, n, d), run)
        wanted = min(kept, k - found)
        best = best.transpose(0, 1).flatten(1)
        keys[:, found : found + wanted] = best.topk(wanted, dim=1).values
        ceilings = keys[:, found + wanted - 1].contiguous()


def _search_rounded(memory: Tensor, index: Tensor, keys: Tensor) -> None:
    """k images are at least as similar as the k-th lower bound: what may reach that is looked at exactly."""
    bounds = row_bounds(memory)
    lowest = torch.empty_like(keys)
    _search(memory, index, None, lowest, "bf16", bounds)
    bars = _read_keys(lowest)[1][:, -1].contiguous()
    above, near = candidate_bits(memory, index, bars, "bf16", bounds)
    pairs = find_pairs(above.bitwise_or_(near))
    ceilings = torch.full((index.shape[0],), HIGHEST, dtype=torch.int64, device=memory.device)
    for place in range(keys.shape[1]):
        largest = torch.full_like(ceilings, NOTHING)
        launch_over_pairs(largest_key_kernel, pairs, memory, index, None, ceilings, largest, OTHERS=True)
        keys[:, place] = ceilings = largest


def _read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    keys = keys.contiguous()
    columns = torch.empty_like(keys)
    values = torch.empty(keys.shape, dtype=torch.float32, device=keys.device)
    if keys.numel() > 0:
        launching.launch(
            read_keys_kernel,
            launching.blocks_of(keys.numel(), KEYS_AT_ONCE),
            keys,
            columns,
            values,
            keys.numel(),
            BLOCK=KEYS_AT_ONCE,
            NOTHING=NOTHING,
        )
    return columns, values
