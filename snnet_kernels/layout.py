"""How labels lie in memory: what every backend and the reference agree on."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_AT_ONCE = 1024  # whose entries are found together: that takes a few times what they take


def label_bytes(n: int) -> int:
    """Bytes of one packed label row of n columns: whole 16-byte words."""
    return 16 * ((n + 127) // 128)


def bit_values(device: torch.device) -> Tensor:
    """The values uint8 [8] of the bits of a byte: column j of a label is bit j % 8 of byte j // 8."""
    return 1 << torch.arange(8, dtype=torch.uint8, device=device)


def identity_labels(index: Tensor, n: int) -> Tensor:
    """Packed one-hot rows at ``index`` [B]: uint8 [B, label_bytes(n)], the labels of the warm-up."""
    labels = torch.zeros(index.shape[0], label_bytes(n), dtype=torch.uint8, device=index.device)
    bits = bit_values(index.device)[index % 8]
    return labels.scatter_(1, (index // 8)[:, None], bits[:, None])


def packed_entries(row: Tensor, column: Tensor, rows: int, width: int) -> Tensor:
    """Packed labels uint8 [rows, label_bytes(width)] that are set at distinct (``row``, ``column``) int64 [E]."""
    bits = torch.zeros(rows, label_bytes(width), dtype=torch.uint8, device=row.device)
    value = (1 << (column % 8)).to(torch.uint8)
    return bits.index_put_((row, column // 8), value, accumulate=True)


def label_entries(labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(row, column) int64 [E] of the set bits below n, by row, then by column: :func:`packed_entries` undone."""
    parts = []
    for number, block in enumerate(labels.split(_ROWS_AT_ONCE)):
        row, byte = block.nonzero(as_tuple=True)  # only bytes with a bit are opened
        entry, bit = (block[row, byte, None] & bit_values(labels.device)).nonzero(as_tuple=True)
        row, column = row[entry] + _ROWS_AT_ONCE * number, 8 * byte[entry] + bit
        parts.append((row[column < n], column[column < n]))
    row, column = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return row, column


def bits_at(bits: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Whether packed labels [B, ...] are set at (``row``, ``column``) int64 [E]: bool [E]."""
    return (bits[row, column // 8] >> (column % 8).to(torch.uint8) & 1).bool()
