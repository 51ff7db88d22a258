"""The part of the mutual label loss (Eq. 8) that falls on the columns that one process owns.

Which negatives are hard is decided over the columns of all processes. Keys int64 order the entries of a row: falling
similarity, ties by lower column, NaN above everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .operation import operation


@operation(
    lambda similarity, labels, first, k: (
        similarity.new_empty(similarity.shape[0], k, dtype=torch.int64),
        similarity.new_empty(similarity.shape[0], k, dtype=torch.uint8),
    )
)
def largest_negatives(
    similarity: Tensor, labels: Sequence[Tensor], first: int, k: int
) -> tuple[Tensor, Tensor]:
    """The ``k`` largest entries of each row of ``similarity`` [B, n] that are negative in one of the packed ``labels``.

    Returns their keys int64 [B, k], columns counted from ``first`` on, in no order, and the sets uint8 [B, k] in which
    each is negative (bit by bit). Where there are fewer the key is -2⁶³ and the sets are 0.
    """
    return reference.largest_negatives(similarity, labels, first, k)


@operation(
    lambda keys, sets, wanted: (
        torch.empty_like(wanted),
        wanted.new_empty(wanted.shape[0], dtype=torch.bool),
    )
)
def hard_negative_bars(keys: Tensor, sets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The key of the last hard negative of each sample and label set, of what R processes have sent.

    Args:
        keys, sets: int64 and uint8 [b, R, k], as :func:`largest_negatives` gives them.
        wanted: how many negatives are hard, int64 [b, sets]; none: the key is 2⁶³ - 1.

    Returns:
        int64 [b, sets], and bool [b]: no process has kept back a key that is larger.
    """
    return reference.hard_negative_bars(keys, sets, wanted)


@operation(
    lambda similarity, memory, *_: (
        similarity.new_empty(similarity.shape[0], dtype=torch.float64),
        similarity.new_empty(similarity.shape[0], memory.shape[1]),
    )
)
def own_columns_loss(
    similarity: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    first: int,
    bars: Tensor,
    positive_weights: Tensor,
    hard_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The own part of each row's ``mmcl`` loss, float64 [B], and of its gradient [B, d].

    Label set k adds ``positive_weights[b, k] (1 − s)²`` for each positive and ``hard_weights[b, k] (1 + s)²`` for each
    negative whose key is at least ``bars[b, k]``.

    Args:
        similarity: of the features with the own rows ``memory`` [n, d], [B, n].
        labels: one to three packed label tensors of the own columns, uint8 [B, label_bytes(n)].
        first: what the columns are counted from in keys.
        bars: int64 [B, sets].
        positive_weights, hard_weights: float64 [B, sets].
    """
    return reference.own_columns_loss(similarity, memory, labels, first, bars, positive_weights, hard_weights)
