"""Integers that order the entries of a row of similarities: falling value, ties by lower column, NaN above all."""

from __future__ import annotations

import torch
from torch import Tensor

NO_KEY = -(2**63)  # of no entry: below all others
HIGHEST_KEY = 2**63 - 1  # above all entries


def keys_of(values: Tensor, columns: Tensor) -> Tensor:
    """The key int64 of each float32 value at a column; the larger one comes first."""
    bits = (values + 0.0).view(torch.int32).long()  # -0 becomes +0
    ordered = torch.where(bits < 0, ~bits & 0xFFFFFFFF, bits | 0x80000000)
    ordered = torch.where(values.isnan(), 0xFFFFFFFF, ordered)
    return ((ordered - 2**31) << 32) | (0xFFFFFFFF - columns)


def key_of(value: float, column: int) -> int:
    """The key of one entry, to compare with."""
    return int(
        keys_of(torch.tensor(value, dtype=torch.float32, device="cpu"), torch.tensor(column, device="cpu"))
    )


def columns_of(keys: Tensor) -> Tensor:
    """The columns of keys."""
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def values_of(keys: Tensor) -> Tensor:
    """The float32 values of keys."""
    ordered = (keys >> 32) + 2**31
    bits = torch.where(ordered >= 2**31, ordered - 2**31, -1 - ordered)
    return bits.to(torch.int32).view(torch.float32)
