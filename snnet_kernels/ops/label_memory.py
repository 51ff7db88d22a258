"""Labels as bits: packing them, and the rows of the pseudo label memory P and of its transpose (Eq. 3, 4, 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, layout, reference
from ..checks import check_index_values
from .operation import operation


@operation(
    lambda labels: labels.new_empty(labels.shape[0], layout.label_bytes(labels.shape[1]), dtype=torch.uint8)
)
def _pack_labels(labels: Tensor) -> Tensor:
    return reference.pack_labels(labels)


@operation(lambda labels, n: labels.new_empty(labels.shape[0], n, dtype=torch.bool))
def _unpack_labels(labels: Tensor, n: int) -> Tensor:
    return reference.unpack_labels(labels, n)


@operation(lambda *_: None, writes=("row_bits", "column_bits"))
def _write_labels_(row_bits: Tensor, column_bits: Tensor, index: Tensor, labels: Tensor) -> None:
    """:func:`write_labels_` of arguments that are checked already."""
    check_index_values("index", index, row_bits.shape[0])
    index, labels = checks.apart([row_bits, column_bits], index, labels)
    reference.write_labels_(row_bits, column_bits, index, labels)


@operation(lambda bits, index: bits.new_empty(index.shape[0], bits.shape[1]))
def _gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    """:func:`gather_labels` of arguments that are checked already, but for the values of the index."""
    check_index_values("index", index, bits.shape[0], lowest=-1)
    return reference.gather_labels(bits, index)


def label_bytes(n: int) -> int:
    """Bytes of one packed label row of ``n`` columns: ``16 * ceil(n / 128)``."""
    return layout.label_bytes(checks.check_count("n", n, lowest=0))


def pack_labels(labels: Tensor) -> Tensor:
    """Pack labels into bits: bool [B, n] to uint8 [B, label_bytes(n)].

    Column j is bit ``j % 8`` of byte ``j // 8``; bits past n are 0. The first bytes equal
    ``numpy.packbits(labels, axis=1, bitorder="little")``.
    """
    labels = checks.check_matrix("labels", labels, "B", "n")
    if labels.dtype != torch.bool:
        raise TypeError(f"labels must be torch.bool, got {labels.dtype}")
    return _pack_labels(labels.contiguous())


def unpack_labels(labels: Tensor, n: int) -> Tensor:
    """Unpack label bits: uint8 [B, label_bytes(n)] to bool [B, n], the inverse of :func:`pack_labels`."""
    label_bytes(n)
    labels = checks.check_labels("labels", labels, n)
    return _unpack_labels(labels, n)


def write_labels_(row_bits: Tensor, column_bits: Tensor, index: Tensor, labels: Tensor) -> None:
    """Write rows of the pseudo label memory and of its transpose, in place: P[index] = labels (Eq. 3).

    If an index is repeated, its last row is kept. Bits past n are not written. The matrices must not share memory.
    :class:`snnet_kernels.PseudoLabelMemory` holds both matrices.

    Args:
        row_bits, column_bits: P and Pᵀ as bits, uint8 [n, label_bytes(n)], contiguous, written.
        index: int64 [B].
        labels: uint8 [B, label_bytes(n)].
    """
    row_bits = checks.check_matrix("row_bits", row_bits, "n", "label_bytes(n)")
    n = row_bits.shape[0]
    row_bits = checks.check_labels("row_bits", row_bits, n, n)
    column_bits = checks.check_labels("column_bits", column_bits, n, n)
    labels = checks.check_labels("labels", labels, n)
    index = checks.check_index("index", index, n, labels.shape[0])
    checks.check_same_device(row_bits=row_bits, column_bits=column_bits, index=index, labels=labels)
    checks.check_apart({"row_bits": row_bits, "column_bits": column_bits})
    _write_labels_(row_bits, column_bits, index, labels)


def gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    """Rows of a label bit matrix: ``bits[index]``, uint8 [B, label_bytes(n)]; index -1 gives an empty label.

    It is a separate operation because torch.compile may move a plain gather behind a later :func:`write_labels_` in the
    same graph.

    Args:
        bits: uint8 [n, label_bytes(n)], contiguous.
        index: int64 [B], -1 <= index < n.
    """
    bits = checks.check_matrix("bits", bits, "n", "label_bytes(n)")
    bits = checks.check_labels("bits", bits, bits.shape[0])
    index = checks.check_index("index", index, bits.shape[0], lowest=-1, read_later=True)
    checks.check_same_device(bits=bits, index=index)
    return _gather_labels(bits, index)
