"""The pseudo label memory P."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .derived import Source
from .fixed_type import FixedTypeModule
from .memory_size import check_room


class PseudoLabelMemory(FixedTypeModule):
    """The most recent main label of every image, P [n, n] as bits, with its transpose; starts as identity.

    A column P[:, i] (Eq. 4) is a contiguous row of the transpose. Takes 2 · n · label_bytes(n) bytes.

    The transpose follows P as S follows the exemplar memory (:class:`ExemplarMemory`): what writes ``row_bits`` past
    autograd is noticed on the CPU where it changed a row that a call names, and otherwise has to be said, by
    :meth:`mark_written_`.

    Buffers: ``row_bits`` and ``column_bits`` uint8 [n, label_bytes(n)] (only the first is saved).
    """

    row_bits: Tensor
    column_bits: Tensor

    def __init__(self, num_instances: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        num_instances = ops.checks.check_count("num_instances", num_instances)
        self.num_instances = num_instances
        shape = (num_instances, ops.label_bytes(num_instances))
        with torch.inference_mode(False):
            check_room(num_instances, 2 * shape[0] * shape[1], torch.empty(0, device=device).device)
            bits = torch.zeros(shape, dtype=torch.uint8, device=device)
            diagonal = torch.arange(num_instances, device=device)
            bit = torch.bitwise_left_shift(torch.ones_like(diagonal), diagonal % 8).to(torch.uint8)
            bits[diagonal, diagonal // 8] = bit
            self.register_buffer("row_bits", bits)
            self.register_buffer("column_bits", bits.clone(), persistent=False)
        self._source = Source()  # the rows that the transpose was made from
        self._vouch_for_columns()

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels (Eq. 3): ``index`` int64 [B], packed ``labels`` uint8 [B, label_bytes(n)].

        Of a repeated index the last row counts.
        """
        self._follow(index)
        ops.write_labels_(self.row_bits, self.column_bits, index, labels)
        self._vouch_for_columns(index)

    def rows(self, index: Tensor) -> Tensor:
        """P[index], packed, uint8 [B, label_bytes(n)]: the labels of images ``index`` [B] (Eq. 6), empty at -1."""
        self._refuse_replication()
        return ops.gather_labels(self.row_bits, index)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ, packed, uint8 [B, label_bytes(n)]: who has images ``index`` [B] as positive (Eq. 4)."""
        self._follow(index, lowest=-1)
        return ops.gather_labels(self.column_bits, index)

    def to_dense(self) -> Tensor:
        """P as bool [n, n], n² bytes."""
        return ops.unpack_labels(self.row_bits, self.num_instances)

    def mark_written_(self) -> None:
        """Say that ``row_bits`` were written past autograd, as :meth:`ExemplarMemory.mark_written_` does."""
        n, block, device = self.num_instances, 1024, self.row_bits.device
        if self.column_bits.device != device:
            with torch.inference_mode(False):
                self.column_bits = torch.zeros(self.row_bits.shape, dtype=torch.uint8, device=device)
        for start in range(0, n, block):  # a block of rows of P is a block of columns of its transpose
            part = ops.unpack_labels(self.row_bits[start : start + block], n)
            packed = ops.pack_labels(part.t())
            self.column_bits[:, start // 8 : start // 8 + packed.shape[1]] = packed
        self._vouch_for_columns()

    def _follow(self, index: Tensor, lowest: int = 0) -> None:
        """Before the transpose is read or written: make it afresh where P, or its rows ``index``, have changed."""
        self._refuse_replication()
        index = ops.checks.check_index("index", index, self.num_instances, lowest=lowest)
        if torch.compiler.is_compiling():
            return
        rows = index.clamp_min(0) if lowest < 0 and index.device.type == "cpu" else index
        if not self._source.holds(self.row_bits, rows):
            self.mark_written_()

    def _vouch_for_columns(self, rows: Tensor | None = None) -> None:
        """The transpose is that of P, of which ``rows`` int64 [B] (default: all) are new."""
        if not torch.compiler.is_compiling():
            self._source.remember_rows(self.row_bits, rows)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.mark_written_()

    def extra_repr(self) -> str:
        return str(self.num_instances)
