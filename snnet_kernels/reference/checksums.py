"""Checksums of rows of words."""

from __future__ import annotations

import torch
from torch import Tensor

WORDS_AT_ONCE = 2**19  # that are multiplied together: bounds the scratch memory


def checksums(words: Tensor, rows: Tensor | None, factors: Tensor) -> Tensor:
    """Sums int64 [k] of the words of each row, or of ``rows`` [k], times ``factors``; they wrap around."""
    chosen = words if rows is None else words.index_select(0, rows)
    parts = chosen.split(max(1, WORDS_AT_ONCE // max(1, words.shape[1])))
    sums = [(part.to(torch.int64) * factors).sum(1) for part in parts]
    return torch.cat(sums) if sums else factors.new_zeros(0)


def checksums_match(words: Tensor, rows: Tensor, factors: Tensor, sums: Tensor) -> Tensor:
    """A bool []: whether the checksums of ``rows`` [k], apart from -1, are those that ``sums`` [n] has of them."""
    chosen = rows[rows >= 0]
    return (sums.index_select(0, chosen) == checksums(words, chosen, factors)).all()
