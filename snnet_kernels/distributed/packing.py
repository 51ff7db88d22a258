"""Labels of several processes: whole ones, and the parts of their columns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..layout import label_bytes
from .rows import Division


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
