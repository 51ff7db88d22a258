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
    lambda similarity, labels, order, first, k: similarity.new_empty(order.shape[0], 9 * k, dtype=torch.uint8)
)
def largest_negatives(
    similarity: Tensor, labels: Sequence[Tensor], order: Tensor, first: int, k: int
) -> Tensor:
    """The ``k`` largest entries of each row of ``similarity`` [B, n] that are negative in one of the packed ``labels``.

    Uint8 [B, 9 k], of row ``order[b]`` (int64 [B]): the bytes of their keys int64 [k], columns counted from ``first``
    on, in no order, and behind these the sets uint8 [k] in which each is negative (bit by bit). Where there are fewer
    the key is -2⁶³ and the sets are 0.
    """
    return reference.largest_negatives(similarity, labels, order, first, k)


@operation(lambda found, positives, *_: positives.new_empty(positives.shape[0], positives.shape[1] + 1))
def hard_negative_bars(found: Tensor, positives: Tensor, n: int, ratio: float) -> Tensor:
    """The key of the last hard negative of each sample and label set, of what R processes have sent.

    Args:
        found: uint8 [R, b, 9 k], as :func:`largest_negatives` gives them.
        positives: of each set in all ``n`` columns, int64 [b, sets]: of the n - p negatives ``ratio`` are hard, one at
            least; of none the key is 2⁶³ - 1.

    Returns:
        int64 [b, sets + 1], the last whether no process has kept back a key that is larger.
    """
    return reference.hard_negative_bars(found, positives, n, ratio)


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
    order: Tensor,
    negatives: Tensor,
    first: int,
    bars: Tensor,
    positives: Tensor,
    weights: Sequence[float],
    delta: float,
    images: int,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """The own part of each row's ``mmcl`` loss, float64 [B], and of its gradient [B, d].

    Label set k adds ``weights[k]`` times ``delta`` (1 − s)² / p for each of its p positives, and (1 + s)² / h for each
    of the h negatives whose key is at least ``bars[b, k]``.

    Args:
        similarity: of the features with the own rows ``memory`` [n, d], [B, n].
        labels: one to three packed label tensors of the own columns, uint8 [B, label_bytes(n)].
        order, negatives: every row once, and what :func:`largest_negatives` gave of it: all that reaches a bar.
        first: what the columns are counted from in keys.
        bars: int64 [B, sets].
        positives: of each set in all ``images`` columns, int64 [B, sets]; ``ratio`` of the others are hard.
    """
    return reference.own_columns_loss(
        similarity, memory, labels, order, negatives, first, bars, positives, weights, delta, images, ratio
    )
