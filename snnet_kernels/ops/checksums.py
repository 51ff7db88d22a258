"""Checksums of rows: whether the matrix that something was derived from is still the same."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..checks import check_index_values
from .operation import operation


@operation(
    lambda words, rows, factors: factors.new_empty(words.shape[0] if rows is None else rows.shape[0]),
)
def checksums(words: Tensor, rows: Tensor | None, factors: Tensor) -> Tensor:
    """Of each row of ``words`` [n, w], any integers, or of ``rows`` int64 [k] of it: the sum of its words, each times
    an odd number of its own, ``factors`` int64 [w], modulo 2^64; int64 [k]."""
    if rows is not None:
        check_index_values("rows", rows, words.shape[0])
    return reference.checksums(words, rows, factors)
