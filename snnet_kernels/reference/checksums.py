"""Checksums of rows of words."""

from __future__ import annotations

import torch
from torch import Tensor

WORDS_AT_ONCE = 2**19  # that are multiplied together: bounds the scratch memory
HALF = 2**32 - 1  # of a word


def checksums(words: Tensor, rows: Tensor | None, keys: Tensor) -> Tensor:
    """A checksum int64 [k] of each row, or of ``rows`` [k], under ``keys`` [w]. The sums wrap around."""
    chosen = words if rows is None else words.index_select(0, rows)
    parts = chosen.split(max(1, WORDS_AT_ONCE // max(1, words.shape[1])))
    sums = [_sums(part.to(torch.int64), keys) for part in parts]
    return torch.cat(sums) if sums else keys.new_zeros(0)


def _sums(words: Tensor, keys: Tensor) -> Tensor:
    lower, upper = words + keys, (words >> 32) + (keys >> 32)
    return ((lower & HALF) * (upper & HALF)).sum(1)


def checksums_match(words: Tensor, rows: Tensor, keys: Tensor, sums: Tensor) -> Tensor:
    """A bool []: whether the checksums of ``rows`` [k], apart from -1, are those that ``sums`` [n] has of them."""
    chosen = rows[rows >= 0]
    return (sums.index_select(0, chosen) == checksums(words, chosen, keys)).all()
