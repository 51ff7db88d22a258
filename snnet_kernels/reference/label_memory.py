"""Labels as bits, and the pseudo label memory P with its transpose (Eq. 3, 4, 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import bit_values, label_bytes


def pack_labels(labels: Tensor) -> Tensor:
    """bool [B, n] -> uint8 [B, label_bytes(n)]; column j is bit j % 8 of byte j // 8, the tail is 0."""
    batch_size, n = labels.shape
    padded = labels.new_zeros(batch_size, 8 * label_bytes(n), dtype=torch.uint8)
    padded[:, :n] = labels.view(torch.uint8) != 0  # a bool of foreign memory may hold any byte
    return (padded.view(batch_size, label_bytes(n), 8) * bit_values(labels.device)).sum(2, dtype=torch.uint8)


def unpack_labels(labels: Tensor, n: int) -> Tensor:
    """uint8 [B, label_bytes(n)] -> bool [B, n], the inverse of :func:`pack_labels`."""
    bits = (labels[:, :, None] & bit_values(labels.device)) != 0
    return bits.flatten(1)[:, :n].contiguous()


def labels_at(labels: Tensor, columns: Tensor) -> Tensor:
    """bool [B, k]: the label bits at ``columns`` [B, k]."""
    return (labels.gather(1, columns // 8) & bit_values(labels.device)[columns % 8]) != 0


def write_labels_(rows: Tensor, columns: Tensor, index: Tensor, labels: Tensor) -> None:
    """P[index] <- labels (Eq. 3) in ``rows`` [n, label_bytes(n)] and in its transpose ``columns``.

    Only the bits that change are touched in the transpose. Of a repeated index the last row counts; bits past
    the last column are not written.
    """
    n = rows.shape[0]
    newest = last_occurrence(index, n)
    exists = pack_labels(torch.ones(1, n, dtype=torch.bool, device=rows.device))
    index, labels = index[newest], labels[newest] & exists
    changed = unpack_labels(rows[index] ^ labels, n)
    entry, column = changed.nonzero(as_tuple=True)
    row = index[entry]
    bit = bit_values(rows.device)[row % 8]
    became_set = (labels[entry, column // 8] >> (column % 8).to(torch.uint8)) & 1
    # Each pair flips its own bit, so adding or subtracting the bit (modulo 256) is the same as XOR,
    # and several flips in one byte add up.
    step = torch.where(became_set.bool(), bit, -bit)
    columns.view(-1).index_put_((column * columns.shape[1] + row // 8,), step, accumulate=True)
    rows[index] = labels


def gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    """bits[index] [B, L] of ``bits`` [n, L]; an index of -1 gives an empty label."""
    return bits[index.clamp_min(0)] * (index >= 0)[:, None]


def last_occurrence(index: Tensor, n: int) -> Tensor:
    """Positions in ``index`` [B] after which the same value does not come again."""
    position = torch.arange(index.shape[0], device=index.device)
    last = torch.full((n,), -1, dtype=torch.int64, device=index.device)
    last.scatter_reduce_(0, index, position, reduce="amax")
    return (last[index] == position).nonzero().flatten()
