"""The candidates that are not cycle consistent: p of sample i with anchor a where #{l : S[p,l] > S[p,a]} > k.

Work is cut into items, a group of tiles of pairs against a range of columns each, which the programs take in turn. An
item looks at a part of its columns first; the pairs that are still open are then moved together, so that whole tiles
of them go on and none is kept going by one pair. Where the tiles alone fill the device an item has all columns; only
where there are fewer are the columns cut, the counts added up in memory and what other items have counted taken into
account, so that this takes a fixed number of counters.
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
from .products import pair_products, tile_products, unknown_zero
from .row_bounds import RowBounds

# Items for each program, so that none waits long for the last; columns that are worth an item.
ITEMS = 8
FEWEST_COLUMNS = 512
# Tiles of pairs in a group, at most: whose open pairs are moved together. Of an item's columns, one part in FIRST_PART
# is looked at before.
GROUP = 8
FIRST_PART = 4
# What is kept of each pair of a group, beside registers.
_FIELDS = 8


@triton.jit
def anchor_similarities(
    memory,
    candidate,  # int32 [BLOCK_A], inside the memory
    anchor,  # the same
    d,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIR_K: tl.constexpr,
):
    """S[candidate, anchor] fp32 [BLOCK_A], in the arithmetic of the entries that it is held against."""
    candidate = candidate.to(tl.int64)
    anchor = anchor.to(tl.int64)
    if PRECISION == "ieee" or PRECISION == "bf16":
        bar = pair_products(memory, d, candidate, memory, d, anchor, d, BLOCK_A, PAIR_K)
    else:
        square = tile_products(
            memory, d, candidate, memory, d, anchor, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
        )
        diagonal = tl.arange(0, BLOCK_A)[:, None] == tl.arange(0, BLOCK_B)[None, :]
        bar = tl.sum(tl.where(diagonal, square, 0.0), 1)
    return bar


@triton.jit
def move_open_pairs(room, rank, listed, tiles, BLOCK_A: tl.constexpr):
    """Number of the pairs that can take more columns; their places in the group come into ``listed``, in order."""
    count = tl.zeros((), tl.int32)
    for tile in range(0, tiles):
        place = tile * BLOCK_A + tl.arange(0, BLOCK_A)
        is_open = (tl.load(room + place) >= tl.load(rank + place)).to(tl.int32)
        before = count + tl.cumsum(is_open, 0) - is_open
        tl.store(listed + before, place, mask=is_open != 0)
        count += tl.sum(is_open, 0)
    return count


@triton.jit(do_not_specialize=["batch_size", "blocks", "n", "min_rank", "strict"])
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
    states,  # int32 [programs, FIELDS, GROUP * BLOCK_A], of any value
    inconsistent,  # int32 [B, 4 blocks], zeros
    possible,  # the same, for bf16
    batch_size,
    blocks,
    n,
    d,
    min_rank,
    strict,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIR_K: tl.constexpr,
    ITEMS: tl.constexpr,
    FEWEST_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    FIRST_PART: tl.constexpr,
    FIELDS: tl.constexpr,
):
    total = tl.load(ends + batch_size - 1)
    tiles = tl.cdiv(total, BLOCK_A)
    # Groups as large as leaves enough items: for each of them there is an item for every FEWEST_COLUMNS columns.
    items = ITEMS * tl.num_programs(0)
    together = tl.minimum(tl.maximum(tiles * tl.cdiv(n, FEWEST_COLUMNS) // items, 1), GROUP).to(tl.int32)
    groups = tl.cdiv(tiles, together)
    splits = tl.minimum(tl.cdiv(items, tl.maximum(groups, 1)), tl.cdiv(n, FEWEST_COLUMNS))
    # There are counters for so many tiles.
    splits = tl.where(tiles > items, 1, splits)
    span = tl.cdiv(tl.cdiv(n, splits), BLOCK_B) * BLOCK_B
    splits = tl.cdiv(n, span)
    PAIRS: tl.constexpr = GROUP * BLOCK_A
    candidates = states + tl.program_id(0) * (FIELDS * PAIRS)
    anchors = candidates + PAIRS
    bars = candidates + 2 * PAIRS
    room = candidates + 3 * PAIRS
    samples = candidates + 4 * PAIRS
    own_ranks = candidates + 5 * PAIRS
    own_likely = candidates + 6 * PAIRS
    listed = candidates + 7 * PAIRS
    # Items that run together share columns.
    for item in range(tl.program_id(0), groups * splits, tl.num_programs(0)):
        first_tile = (item % groups) * together
        own_tiles = tl.minimum(tiles - first_tile, together).to(tl.int32)
        for tile in range(0, own_tiles):
            pair = pairs_of_tile(first_tile + tile, total, BLOCK_A)
            sample, candidate = locate_pairs(pair, ends, sizes, before, bits, batch_size, blocks, BLOCK_A)
            candidate = tl.minimum(candidate, n - 1)
            anchor = column_of_key(tl.load(anchor_keys + sample))
            anchor = tl.minimum(tl.maximum(anchor, 0), n - 1)
            # Kept in memory meanwhile: registers are for the products.
            place = tile * BLOCK_A + tl.arange(0, BLOCK_A)
            tl.store(candidates + place, candidate)
            tl.store(anchors + place, anchor)
            tl.store(samples + place, sample)
            # How many more columns a pair can take; what other items have counted of it only grows.
            count = tl.load(counts + sample).to(tl.int32)
            left = tl.where(strict != 0, count, tl.maximum(count, min_rank))
            if splits > 1:
                left -= tl.load(ranks + first_tile * BLOCK_A + place, volatile=True)
            tl.store(room + place, left)
            tl.store(own_ranks + place, tl.zeros((BLOCK_A,), tl.int32))
            tl.store(own_likely + place, tl.zeros((BLOCK_A,), tl.int32))
            bar = anchor_similarities(
                memory, candidate, anchor, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION, PAIR_K
            )
            tl.store(bars + place, bar.to(tl.int32, bitcast=True))
        start = ((item // groups) * span).to(tl.int32)
        end = tl.minimum(start + span, n)
        middle = tl.minimum(start + tl.cdiv(span // FIRST_PART, BLOCK_B) * BLOCK_B, end).to(tl.int32)
        for part in range(0, 2):
            # Read back after a barrier: threads that hold the same pair have to agree on the loops.
            tl.debug_barrier()
            open_pairs = move_open_pairs(room, own_ranks, listed, own_tiles, BLOCK_A)
            tl.debug_barrier()
            begin = tl.where(part == 0, start, middle)
            stop = tl.where(part == 0, middle, end)
            for tile in range(0, tl.cdiv(open_pairs, BLOCK_A)):
                rank = tl.zeros((BLOCK_A,), tl.int32)
                likely_rank = tl.zeros((BLOCK_A,), tl.int32)
                first = begin
                any_open = first < stop
                while any_open:
                    column = first + tl.arange(0, BLOCK_B)
                    row = tl.minimum(column, n - 1).to(tl.int64)
                    lane = unknown_zero(first) + tile * BLOCK_A + tl.arange(0, BLOCK_A)
                    own = listed + tl.minimum(lane, open_pairs - 1)
                    candidate_row = tl.load(candidates + tl.load(own)).to(tl.int64)
                    products = tile_products(
                        memory, d, candidate_row, memory, d, row, d, BLOCK_A, BLOCK_B, BLOCK_K, PRECISION
                    )
                    lane = unknown_zero(first) + tile * BLOCK_A + tl.arange(0, BLOCK_A)
                    place = tl.load(listed + tl.minimum(lane, open_pairs - 1))
                    bar = tl.load(bars + place).to(tl.float32, bitcast=True)
                    counted = column[None, :] != tl.load(anchors + place)[:, None]
                    counted = counted & (column < end)[None, :]
                    if PRECISION == "bf16":
                        candidate_row = tl.load(candidates + place).to(tl.int64)
                        error = tl.load(residuals + candidate_row)[:, None] * tl.load(norms + row)[None, :]
                        error += tl.load(norms + candidate_row)[:, None] * tl.load(residuals + row)[None, :]
                        unlikely = (
                            products + error <= bar[:, None]
                        )  # false where an infinite bound leaves NaN
                        likely_rank += tl.sum((counted & ~unlikely).to(tl.int32), 1)
                        products -= error
                    rank += tl.sum((counted & (products > bar[:, None])).to(tl.int32), 1)
                    left = tl.load(room + place) - tl.load(own_ranks + place)
                    first += BLOCK_B
                    any_open = (first < stop) & (tl.max(left - rank, 0) >= 0)
                tl.debug_barrier()
                lane = tile * BLOCK_A + tl.arange(0, BLOCK_A)
                place = tl.load(listed + tl.minimum(lane, open_pairs - 1))
                inside = lane < open_pairs  # past them the last is repeated
                tl.store(own_ranks + place, tl.load(own_ranks + place) + rank, mask=inside)
                if PRECISION == "bf16":
                    tl.store(own_likely + place, tl.load(own_likely + place) + likely_rank, mask=inside)
                tl.debug_barrier()
        tl.debug_barrier()
        for tile in range(0, own_tiles):
            place = tile * BLOCK_A + tl.arange(0, BLOCK_A)
            sample = tl.load(samples + place)
            candidate = tl.load(candidates + place)
            rank = tl.load(own_ranks + place)
            likely_rank = tl.load(own_likely + place)
            count = tl.load(counts + sample).to(tl.int32)
            max_rank = tl.where(strict != 0, count, tl.maximum(count, min_rank))
            if splits > 1:
                counter = first_tile * BLOCK_A + place
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
    strict: bool,
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
            torch.empty(programs, _FIELDS, GROUP * tile.rows, dtype=torch.int32, device=memory.device),
            words[0],
            words[-1],
            batch_size,
            pairs.blocks,
            n,
            d,
            min_rank,
            int(strict),
            PRECISION=precision,
            PAIR_K=PAIR_DEPTH,
            ITEMS=ITEMS,
            FEWEST_COLUMNS=FEWEST_COLUMNS,
            GROUP=GROUP,
            FIRST_PART=FIRST_PART,
            FIELDS=_FIELDS,
            **tile.options(),
        )
        # What surely is inconsistent possibly is: the exclusive or leaves the pairs in doubt.
        return marks[0], marks[0] if bounds is None else marks[1].bitwise_xor_(marks[0])

    return launching.with_fastest_tile(
        ("rank_counts", precision), launching.TILES[precision], memory.device, (batch_size, n, d), run
    )
