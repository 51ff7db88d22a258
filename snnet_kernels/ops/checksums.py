"""Checksums of rows, to detect whether a matrix has changed since something was derived from it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..checks import check_index_values
from .operation import operation


@operation(
    lambda words, rows, factors: factors.new_empty(words.shape[0] if rows is None else rows.shape[0]),
)
def checksums(words: Tensor, rows: Tensor | None, factors: Tensor) -> Tensor:
    """The checksum int64 [k] of each row of ``words`` [n, w] (any integers), or of its ``rows`` int64 [k]: the sum of
    ``words * factors`` modulo 2^64, with odd ``factors`` int64 [w]."""
    if rows is not None:
        check_index_values("rows", rows, words.shape[0])
    return reference.checksums(words, rows, factors)


@operation(lambda words, rows, factors, sums: factors.new_empty((), dtype=torch.bool))
def checksums_match(words: Tensor, rows: Tensor, factors: Tensor, sums: Tensor) -> Tensor:
    """A bool []: whether :func:`checksums` of ``rows`` int64 [k] are those of ``sums`` int64 [n]; -1 is no row."""
    check_index_values("index", rows, words.shape[0], lowest=-1)
    return reference.checksums_match(words, rows, factors, sums)
