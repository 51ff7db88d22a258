"""Checksums of rows, to detect whether a matrix has changed since something was derived from it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..checks import check_index_values
from .operation import operation


@operation(
    lambda words, rows, keys: keys.new_empty(words.shape[0] if rows is None else rows.shape[0]),
)
def checksums(words: Tensor, rows: Tensor | None, keys: Tensor) -> Tensor:
    """The checksum int64 [k] of each row of ``words`` [n, w] (any integers), or of its ``rows`` int64 [k].

    It is the hash NH (of UMAC) with ``keys`` int64 [w]. Each word is an int64 of two halves. The halves of its key are
    added to them, modulo 2^32. The checksum is the sum of the products of both halves, modulo 2^64. If keys are random,
    two different rows have the same checksum with a probability of 2^-32 or less, whatever they are.
    """
    if rows is not None:
        check_index_values("rows", rows, words.shape[0])
    return reference.checksums(words, rows, keys)


@operation(lambda words, rows, keys, sums: keys.new_empty((), dtype=torch.bool))
def checksums_match(words: Tensor, rows: Tensor, keys: Tensor, sums: Tensor) -> Tensor:
    """A bool []: whether :func:`checksums` of ``rows`` int64 [k] are those of ``sums`` int64 [n]; -1 is no row."""
    check_index_values("index", rows, words.shape[0], lowest=-1)
    return reference.checksums_match(words, rows, keys, sums)
