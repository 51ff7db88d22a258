"""Entries of a similarity row: keys that sort them, and label bits."""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

# Below every key; above every key, that of NaN in column 0 too.
NOTHING = -(2**63)
HIGHEST = (0x7FFFFFFF << 32) + 2**31


@triton.jit
def ordered_bits(value):
    """int32 that order as the values do: -0 is +0, NaN above everything."""
    value = tl.where(value == 0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(value != value, 0x7FFFFFFF, ordered)


@triton.jit
def join_key(ordered, column):
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def selection_key(value, column):
    """int64 keys that order as the entries do: falling value, ties by lower column; NaN above everything.

    ``value`` fp32 and ``column`` int32 are broadcast. No two entries of a row have the same key.
    """
    return join_key(ordered_bits(value), column)


@triton.jit
def ordered_of_key(key):
    return (key >> 32).to(tl.int32)


@triton.jit
def column_of_key(key):
    return key.to(tl.int32) ^ 0x7FFFFFFF


@triton.jit
def value_of_key(key):
    """The similarity of a key (+0 for -0, some NaN for NaN)."""
    ordered = ordered_of_key(key)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def label_bytes(n):
    return 16 * ((n + 127) // 128)


@triton.jit
def load_label_bits(labels, byte, n):
    """int32: the bytes of a packed label row at pointers ``labels + byte``, without the bits past column n."""
    packed = tl.load(labels + byte, mask=8 * byte < n, other=0).to(tl.int32)
    return packed & (0xFF >> tl.minimum(tl.maximum(8 * byte + 8 - n, 0), 8))


@triton.jit
def pack_bits(flags, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """bool [ROWS, COLUMNS] to uint8 [ROWS, COLUMNS / 8]; column j is bit j % 8 of byte j // 8."""
    flags = tl.reshape(flags.to(tl.int32), (ROWS, COLUMNS // 8, 8))
    return tl.sum(flags << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def count_bits(byte):
    """Bits set in each int32 of at most 8 bits."""
    byte = byte - ((byte >> 1) & 0x55)
    byte = (byte & 0x33) + ((byte >> 2) & 0x33)
    return (byte + (byte >> 4)) & 0x0F
