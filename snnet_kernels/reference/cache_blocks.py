"""Which blocks of the similarity cache may hold a value above a floor: a bit for every 32 columns of a row.

What ranks before an anchor lies above S[p, anchor], which is mostly above the threshold: nearly all of a row need
not be read to count it. The bits follow the cache through its updates; one that is set needlessly costs a look.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BLOCK_COLUMNS, CacheBlocks, block_bytes
from .labels import pack_labels

# Entries of the cache that are looked at together: bounds the scratch memory.
ENTRIES_AT_ONCE = 2**24


def _high_blocks(rows: Tensor, floor: float) -> Tensor:
    """Bits of the blocks of ``rows`` [k, n] that hold a value above the floor: uint8 [k, block_bytes(n)]."""
    high = torch.nn.functional.pad(rows > floor, (0, -rows.shape[1] % BLOCK_COLUMNS))
    return pack_labels(high.unflatten(1, (-1, BLOCK_COLUMNS)).any(2))


def mark_cache_blocks(cache: Tensor, floor: float = 0.6) -> CacheBlocks:
    """The blocks of a cache [n, n] that hold a value above the floor."""
    return CacheBlocks(block_bits(cache, floor), floor)


def block_bits(cache: Tensor, floor: float) -> Tensor:
    """Their bits."""
    n = cache.shape[0]
    bits = cache.new_empty(n, block_bytes(n), dtype=torch.uint8)
    step = max(1, ENTRIES_AT_ONCE // max(n, 1))
    for first in range(0, n, step):
        bits[first : first + step] = _high_blocks(cache[first : first + step], floor)
    return bits


def update_cache_blocks_(blocks: CacheBlocks, cache: Tensor, index: Tensor) -> None:
    """Bring the block bits up to a cache whose rows and columns ``index`` [b] (distinct) were written.

    The bits of these rows are made afresh; in the other rows bits are set and none is cleared.
    """
    bits, floor = blocks
    n = cache.shape[0]
    columns = (cache[:, index] > floor).int()
    high = columns.new_zeros(n, (n + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS)
    high.index_add_(1, index // BLOCK_COLUMNS, columns)
    bits |= pack_labels(high > 0)
    bits[index] = _high_blocks(cache[index], floor)
