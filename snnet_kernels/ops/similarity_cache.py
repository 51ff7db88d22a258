"""The cached similarity matrix S = M Mᵀ, and marks of the blocks of it that labels have to look into."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, reference
from ..layout import CacheBlocks, block_bytes
from .operation import operation


@operation(lambda memory: memory.new_empty(memory.shape[0], memory.shape[0]))
def _build_similarity_cache(memory: Tensor) -> Tensor:
    return reference.build_similarity_cache(memory)


@operation(
    lambda cache, floor: cache.new_empty(cache.shape[0], block_bytes(cache.shape[0]), dtype=torch.uint8)
)
def _mark_cache_blocks(cache: Tensor, floor: float) -> Tensor:
    return reference.block_bits(cache, floor)


def build_similarity_cache(memory: Tensor) -> Tensor:
    """All similarities of the exemplar memory to itself: S = M Mᵀ, float32 [n, n], 4n² bytes.

    Equals ``memory @ memory.t()`` in true float32, for rows of any length; :func:`update_memory_` keeps it current.
    """
    memory = checks.check_memory("memory", memory)
    return _build_similarity_cache(memory)


def mark_cache_blocks(cache: Tensor, floor: float = 0.6) -> CacheBlocks:
    """The blocks of 32 columns of each cache row that hold a value above ``floor``, n² / 256 bytes as bits.

    :func:`mplp` over this cache reads them in place of the whole row of a candidate, where the candidate's
    similarity to the anchor is at least the floor: best the threshold of the labels. Every :func:`update_memory_` of
    the cache must be given them, and keeps them current; after any other write to the cache mark again, or labels
    will be wrong. Equals ``(cache > floor)``, any of 32 neighbours, packed as :func:`pack_labels` does.

    Args:
        cache: S = M Mᵀ float32 [n, n], contiguous.
        floor: a finite number (rounded to float32 first).
    """
    cache = checks.check_cache("cache", cache, checks.check_matrix("cache", cache, "n", "n").shape[0])
    floor = checks.check_finite("floor", floor)
    return CacheBlocks(_mark_cache_blocks(cache, floor), floor)
