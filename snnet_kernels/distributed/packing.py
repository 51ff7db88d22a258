"""Labels of several processes: bits from entries, and whole labels from parts of their columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import label_bytes
from .rows import Division


def packed_entries(row: Tensor, column: Tensor, rows: int, width: int) -> Tensor:
    """Packed labels uint8 [rows, label_bytes(width)] that are set at distinct (``row``, ``column``) int64 [E]."""
    bits = torch.zeros(rows, label_bytes(width), dtype=torch.uint8, device=row.device)
    value = (1 << (column % 8)).to(torch.uint8)
    return bits.index_put_((row, column // 8), value, accumulate=True)


def bits_at(bits: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Whether packed labels [B, ...] are set at (``row``, ``column``) int64 [E]: bool [E]."""
    return (bits[row, column // 8] >> (column % 8).to(torch.uint8) & 1).bool()


def split_columns(labels: Tensor, division: Division) -> list[Tensor]:
    """The columns that each process owns of packed labels [B, label_bytes(n)]."""
    parts = []
    for rank in range(division.size):
        own = division.rows(rank)
        parts.append(labels[:, own.start // 8 : own.start // 8 + label_bytes(len(own))].contiguous())
    return parts


def joined_columns(parts: Sequence[Tensor], division: Division) -> Tensor:
    """Packed labels [B, label_bytes(n)] of the columns that each process owns."""
    labels = parts[0].new_zeros(len(parts[0]), label_bytes(division.n))
    for rank, part in enumerate(parts):
        own = division.rows(rank)
        labels[:, own.start // 8 : own.start // 8 + label_bytes(len(own))] = part
    return labels
