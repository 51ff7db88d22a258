"""The candidates that are not cycle consistent: p of sample i with anchor a where #{l : S[p,l] > S[p,a]} > k.

Work is cut into items, a tile of pairs against a range of columns each, which the programs take in turn. Where
the tiles alone fill the device an item has all columns and its counts stay in registers; only where there are
fewer are the columns cut and the counts added up in memory, so that this takes a fixed number of counters.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .entries import column_of_key
from .launching import Tile
from .pairs import PAIR_DEPTH, Pairs, locate_pairs, mark_pairs, pairs_of_tile
from .products import pair_products, tile_products
from .row_bounds import RowBounds

# Items for each program, so that none waits long for the last; columns that are worth an item.
ITEMS = 8
FEWEST_COLUMNS = 512


@triton.jit(do_not_specialize=["batch_size", "blocks", "n", "min_rank"])
def rank_count_kernel(
    ends,
    sizes,
    before,
    bits,
    memory,  # fp32 [n, d]
    norms,  # fp32 [n], for bf16
    residuals,
    anchor_keys,  # int64 [B]
    counts,  # int64 [B]: candidates of each sample
    ranks,  # int32 [ITEMS * programs * BLOCK_A], zeros
    likely_ranks,
    states,  # int32 [programs, 5, BLOCK_A], of any value
    inconsistent,  # int32 [B, 4 blocks], zeros
    possible,  # the same, for bf16
    batch_size,
    blocks,
    n,
    d,
    min_rank,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIR_K: tl.constexpr,
    ITEMS: tl.constexpr,
    FEWEST_COLUMNS: tl.constexpr,
):
    total = tl.load(ends + batch_size - 1)
    tiles = tl.cdiv(total, BLOCK_A)
    splits = tl.cdiv(ITEMS * tl.num_programs(0), tl.maximum(tiles, 1))
    splits = tl.minimum(splits, tl.cdiv(n, FEWEST_COLUMNS))
    span = tl.cdiv(tl.cdiv(n, splits), BLOCK_B) * BLOCK_B
    splits = tl.cdiv(n, span)
    own = states + tl.program_id(0) * (5 * BLOCK_A)
    # Items that run together share columns.
    for item in range(tl.program_id(0), tiles * splits, tl.num_programs(0)):
        pair = pairs_of_tile(item % tiles, total, BLOCK_A)
        sample, candidate = locate_pairs(pair, ends, sizes, before, bits, batch_size, blocks, BLOCK_A)
        candidate = tl.minimum(candidate, n - 1)
        anchor = column_of_key(tl.load(anchor_keys + sample))
        anchor = tl.minimum(tl.maximum(anchor, 0), n - 1)
        count = tl.load(counts + sample).to(tl.int32)
        max_rank = tl.maximum(count, min_rank)
        # The bar comes from the arithmetic of the entries that it is held against.
        if PRECISION == "ieee" or PRECISION == "bf16":
            bar = pair_products(
                memory, d, candidate.to(tl.int64), memory, d, anchor.to(tl.int64), d, BLOCK_A, PAIR_K
            )
        else:
            square = tile_products(
                memory,
                d,
                candidate.to(tl.int64),
                memory,
                d,
                anchor.to(tl.int64),
                d,
                BLOCK_A,
                BLOCK_B,
                BLOCK_K,
                PRECISION,
            )
            diagonal = tl.arange(0, BLOCK_A)[:, None] == tl.arange(0, BLOCK_B)[None, :]
            bar = tl.sum(tl.where(diagonal, square, 0.0), 1)
        # Kept in memory meanwhile: registers are for the products.
        place = tl.arange(0, BLOCK_A)
        tl.store(own + place, candidate)
        tl.store(own + BLOCK_A + place, anchor)
        tl.store(own + 2 * BLOCK_A + place, bar.to(tl.int32, bitcast=True))
        # How many more columns a pair can take; what other items have counted of it only grows.
        room = max_rank
        counter = (item % tiles) * BLOCK_A + place
        if splits > 1:
            room -= tl.load(ranks + counter, volatile=True)
        tl.store(own + 3 * BLOCK_A + place, room)
        tl.store(own + 4 * BLOCK_A + place, sample)
        tl.debug_barrier()
        first = ((item // tiles) * span).to(tl.int32)
        end = tl.minimum(first + span, n)
        rank = tl.zeros((BLOCK_A,), tl.int32)
        likely_rank = tl.zeros((BLOCK_A,), tl.int32)
        # Read back: threads that hold the same pair may have seen different counts, and have to agree on the loop.
        open_pairs = tl.max(tl.load(own + 3 * BLOCK_A + place), 0)
        while (first < end) & (open_pairs >= 0):
            column = first + tl.arange(0, BLOCK_B)
            row = tl.minimum(column, n - 1).to(tl.int64)
            candidate_row = tl.load(own + place).to(tl.int64)
            products = tile_products(
                memory, d, candidate_row, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
            )
            bar = tl.load(own + 2 * BLOCK_A + place).to(tl.float32, bitcast=True)
            counted = column[None, :] != tl.load(own + BLOCK_A + place)[:, None]
            counted = counted & (column < end)[None, :]
            if PRECISION == "bf16":
                candidate_row = tl.load(own + place).to(tl.int64)
                error = tl.load(residuals + candidate_row)[:, None] * tl.load(norms + row)[None, :]
                error += tl.load(norms + candidate_row)[:, None] * tl.load(residuals + row)[None, :]
                unlikely = products + error <= bar[:, None]  # false where an infinite bound leaves NaN
                likely_rank += tl.sum((counted & ~unlikely).to(tl.int32), 1)
                products -= error
            rank += tl.sum((counted & (products > bar[:, None])).to(tl.int32), 1)
            open_pairs = tl.max(tl.load(own + 3 * BLOCK_A + place) - rank, 0)
            first += BLOCK_B
        candidate = tl.load(own + place)
        sample = tl.load(own + 4 * BLOCK_A + place)
        count = tl.load(counts + sample).to(tl.int32)
        max_rank = tl.maximum(count, min_rank)
        if splits > 1:
            counter = (item % tiles) * BLOCK_A + place
            rank += tl.atomic_add(ranks + counter, rank)
            if PRECISION == "bf16":
                likely_rank += tl.atomic_add(likely_ranks + counter, likely_rank)
        mark_pairs(inconsistent, sample, candidate, blocks, rank > max_rank)
        if PRECISION == "bf16":
            mark_pairs(possible, sample, candidate, blocks, likely_rank > max_rank)
        tl.debug_barrier()


def inconsistent_pairs(
    pairs: Pairs,
    memory: Tensor,  # fp32 [n, d]
    anchor_keys: Tensor,  # int64 [B]
    counts: Tensor,  # int64 [B]
    min_rank: int,
    precision: str,
    bounds: RowBounds | None = None,
) -> tuple[Tensor, Tensor]:
    """Bits of the pairs with more than k columns above their anchor, uint8 [B, L].

    In bf16 (``bounds`` given): those that surely have, and those that may or may not; else (bits, bits).
    """
    n, d = memory.shape
    batch_size = counts.shape[0]

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        programs = launching.programs_at_once(tile, memory.device)
        counters = 1 if bounds is None else 2
        ranks = torch.zeros(counters, ITEMS * programs * tile.rows, dtype=torch.int32, device=memory.device)
        marks = torch.zeros(counters, *pairs.bits.shape, dtype=torch.uint8, device=memory.device)
        words = marks.view(torch.int32)
        launching.launch(
            rank_count_kernel,
            programs,
            pairs.ends,
            pairs.sizes,
            pairs.before,
            pairs.bits,
            memory,
            memory if bounds is None else bounds.norms,
            memory if bounds is None else bounds.residuals,
            anchor_keys,
            counts,
            ranks[0],
            ranks[-1],
            torch.empty(programs, 5, tile.rows, dtype=torch.int32, device=memory.device),
            words[0],
            words[-1],
            batch_size,
            pairs.blocks,
            n,
            d,
            min_rank,
            PRECISION=precision,
            PAIR_K=PAIR_DEPTH,
            ITEMS=ITEMS,
            FEWEST_COLUMNS=FEWEST_COLUMNS,
            **tile.options(),
        )
        # What surely is inconsistent possibly is: the exclusive or leaves the pairs in doubt.
        return marks[0], marks[0] if bounds is None else marks[1].bitwise_xor_(marks[0])

    return launching.with_fastest_tile(
        ("rank_counts", precision), launching.TILES[precision], memory.device, (batch_size, n, d), run
    )
