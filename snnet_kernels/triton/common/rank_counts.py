"""The candidates that are not cycle consistent: p of sample i with anchor a where #{l : S[p,l] > S[p,a]} > k.

Work is cut into items, a tile of pairs against a range of columns each, which the programs take in turn. Counts are
added up in memory, in a fixed number of counters. A tile goes on while one of its pairs is consistent: so the pairs
that the first columns leave open are numbered anew, and whole tiles of them go on. More pairs than counters fill the
device with items that have all columns and count in registers.
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
from .pairs import PAIR_DEPTH, Pairs, find_pairs, locate_pairs, mark_pairs, number_pairs, pairs_of_tile
from .products import pair_products, tile_products
from .row_bounds import RowBounds

# Items for each program, so that none waits long for the last; columns that are worth an item.
ITEMS = 8
FEWEST_COLUMNS = 512
# Of all columns, one part in so many is looked at before the pairs that it leaves open are moved together.
FIRST_PART = 2


@triton.jit(do_not_specialize=["batch_size", "blocks", "n", "min_rank", "first_columns", "part"])
def rank_count_kernel(
    ends,  # of the pairs that are open
    sizes,
    before,
    bits,
    all_ends,  # of all pairs, whose numbers the counters have
    all_sizes,
    all_before,
    all_bits,
    memory,  # fp32 [n, d]
    norms,  # fp32 [n], for bf16
    residuals,
    anchor_keys,  # int64 [B]
    counts,  # int64 [B]: candidates of each sample
    ranks,  # int32 [ITEMS * programs * BLOCK_A], zeros
    likely_ranks,
    states,  # int32 [programs, 6, BLOCK_A], uninitialised
    inconsistent,  # int32 [B, 4 blocks], zeros
    possible,  # the same, for bf16
    batch_size,
    blocks,
    n,
    d,
    min_rank,
    first_columns,
    part,  # 0: the first columns, 1: the others
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
    items = ITEMS * tl.num_programs(0)
    in_memory = tl.cdiv(tl.load(all_ends + batch_size - 1), BLOCK_A) <= items
    middle = tl.where(in_memory, tl.minimum(first_columns, n), n)
    start = tl.where(part == 0, 0, middle)
    stop = tl.where(part == 0, middle, n)
    splits = tl.minimum(tl.cdiv(items, tl.maximum(tiles, 1)), tl.cdiv(stop - start, FEWEST_COLUMNS))
    span = tl.cdiv(tl.cdiv(stop - start, tl.maximum(splits, 1)), BLOCK_B) * BLOCK_B
    splits = tl.cdiv(stop - start, tl.maximum(span, 1))
    own = states + tl.program_id(0) * (6 * BLOCK_A)
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
        if in_memory:
            counter = number_pairs(sample, candidate, all_ends, all_sizes, all_before, all_bits, blocks)
            room -= tl.load(ranks + counter, volatile=True)
            tl.store(own + 5 * BLOCK_A + place, counter.to(tl.int32))
        tl.store(own + 3 * BLOCK_A + place, room)
        tl.store(own + 4 * BLOCK_A + place, sample)
        tl.debug_barrier()
        first = (start + (item // tiles) * span).to(tl.int32)
        end = tl.minimum(first + span, stop)
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
        if in_memory:
            counter = tl.load(own + 5 * BLOCK_A + place)
            inside = (item % tiles) * BLOCK_A + place < total  # past them the last is repeated
            rank += tl.atomic_add(ranks + counter, rank, mask=inside)
            if PRECISION == "bf16":
                likely_rank += tl.atomic_add(likely_ranks + counter, likely_rank, mask=inside)
            rank = tl.where(inside, rank, 0)
            likely_rank = tl.where(inside, likely_rank, 0)
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
    *,
    few: bool = False,  # pairs that tell nothing of which tile is the fastest
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
        states = torch.empty(programs, 6, tile.rows, dtype=torch.int32, device=memory.device)
        left = pairs
        for part in range(2):
            if part == 1:
                left = _open_pairs(pairs, marks[0])
            launching.launch(
                rank_count_kernel,
                programs,
                *(left.ends, left.sizes, left.before, left.bits),
                *(pairs.ends, pairs.sizes, pairs.before, pairs.bits),
                memory,
                memory if bounds is None else bounds.norms,
                memory if bounds is None else bounds.residuals,
                anchor_keys,
                counts,
                ranks[0],
                ranks[-1],
                states,
                words[0],
                words[-1],
                batch_size,
                pairs.blocks,
                n,
                d,
                min_rank,
                launching.blocks_of(n, FIRST_PART * FEWEST_COLUMNS) * FEWEST_COLUMNS,
                part,
                PRECISION=precision,
                PAIR_K=PAIR_DEPTH,
                ITEMS=ITEMS,
                FEWEST_COLUMNS=FEWEST_COLUMNS,
                **tile.options(),
            )
        # What surely is inconsistent possibly is: the exclusive or leaves the pairs in doubt.
        return marks[0], marks[0] if bounds is None else marks[1].bitwise_xor_(marks[0])

    return launching.with_fastest_tile(
        ("rank_counts", precision),
        launching.TILES[precision][: 1 if few else None],
        memory.device,
        (batch_size, n, d),
        run,
    )


def _open_pairs(pairs: Pairs, inconsistent: Tensor) -> Pairs:
    """The pairs without those that are marked as inconsistent, uint8 [B, L]."""
    found = find_pairs(inconsistent.bitwise_not().bitwise_and_(pairs.bits))
    sizes = found.sizes.where(pairs.sizes > 0, 0)
    return found._replace(sizes=sizes, ends=sizes.cumsum(0))
