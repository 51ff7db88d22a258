"""The pseudo label memory as lists in both orientations, which grow as they need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .label_list_layout import list_entries, made_lists
from .ops.label_lists import gather_label_lists, write_label_lists_

_PARTS = ("entries", "starts", "counts", "sizes", "used")


class LabelTables(nn.Module):
    """Of each row of P [n, n] the columns where it is set, and of each column the rows; starts as identity.

    Buffers, of ``row_`` and ``column_`` each, none of them saved: see :mod:`.ops.label_lists`.
    """

    def __init__(self, n: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.n = n
        own = torch.arange(n, device=device)
        for side in ("row", "column"):
            self._take(side, own, own)

    @property
    def device_tensor(self) -> Tensor:
        """A tensor of the tables, which says where they are."""
        return self._buffers["row_starts"]  # type: ignore[return-value]

    def _table(self, side: str) -> list[Tensor]:
        return [self._buffers[f"{side}_{part}"] for part in _PARTS]  # type: ignore[misc]

    def _take(self, side: str, which: Tensor, entry: Tensor, room: int = 0) -> None:
        """Make the lists of the pairs (list, entry) afresh, with ``room`` places behind or as many as they take."""
        none = torch.zeros(self.n, dtype=torch.int32, device=which.device)
        with torch.inference_mode(False):
            entries, starts, counts, sizes = made_lists(which.clone(), entry.clone(), none)
            used = torch.tensor(len(entries), device=which.device)
            entries = torch.cat([entries, entries.new_zeros(max(room, len(entries)))])
        for part, tensor in zip(_PARTS, (entries, starts, counts, sizes, used), strict=True):
            self.register_buffer(f"{side}_{part}", tensor, persistent=False)

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels; tables that are full are made afresh, with what they need behind."""
        while True:
            needed = write_label_lists_(*self._table("row"), *self._table("column"), index, labels).tolist()
            if not any(needed):
                return
            for side, room in zip(("row", "column"), needed, strict=True):
                self._take(side, *list_entries(*self._table(side)[:3]), room=room)

    def rows(self, index: Tensor) -> Tensor:
        """P[index], packed [B, label_bytes(n)]; empty at -1."""
        return gather_label_lists(*self._table("row")[:3], index)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ, packed [B, label_bytes(n)]; empty at -1."""
        return gather_label_lists(*self._table("column")[:3], index)

    def pairs(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(row, column) of what is set in the rows [first, last), by row, then by column."""
        entries, starts, counts, *_ = self._table("row")
        row, column = list_entries(entries, starts[first:last], counts[first:last])
        order = (row * self.n + column).argsort()
        return row[order] + first, column[order]

    def saved(self) -> tuple[Tensor, Tensor]:
        """Columns int32 [E] of each row in order, and their counts int32 [n]."""
        _, column = self.pairs(0, self.n)
        return column.to(torch.int32), self._table("row")[2].clone()

    def load_(self, entries: Tensor, counts: Tensor) -> None:
        """What :meth:`saved` gave; ValueError where it is no such thing."""
        device, n = self.device_tensor.device, self.n
        entries, counts = entries.to(device), counts.to(device)
        fits = entries.dtype == counts.dtype == torch.int32 and entries.dim() == 1 and counts.shape == (n,)
        if not fits or bool((counts < 0).any()) or int(counts.sum()) != len(entries):
            raise ValueError(
                f"row_entries and row_counts must be int32 [E] and int32 [{n}] whose sum is E, got "
                f"{entries.dtype} {list(entries.shape)} and {counts.dtype} {list(counts.shape)}"
            )
        row = torch.arange(n, device=device).repeat_interleave(counts.long())
        column = entries.long()
        if bool(((column < 0) | (column >= n)).any()) or len((row * n + column).unique()) != len(row):
            raise ValueError(f"row_entries must be distinct columns in [0, {n}) of each row")
        self._take("row", row, column)
        self._take("column", column, row)
