"""The pseudo label memory as lists in both orientations, which grow as they need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .label_list_layout import made_lists
from .ops.label_lists import gather_label_lists, gather_list_entries, write_label_lists_

_PARTS = ("entries", "starts", "counts", "sizes", "used")


class LabelTables(nn.Module):
    """Of each row of P [n, n] the columns where it is set, and of each column the rows; starts as identity.

    With ``own`` a part of the columns alone, P[:, own], counted from the first of them.

    Buffers, of ``row_`` and ``column_`` each, none of them saved: see :mod:`.ops.label_lists`.
    """

    def __init__(self, n: int, device: torch.device | str | None = None, *, own: range | None = None) -> None:
        super().__init__()
        own = range(n) if own is None else own
        self.n, self.width = n, len(own)
        for name in (f"{side}_{part}" for side in ("row", "column") for part in _PARTS):
            self.register_buffer(name, None, persistent=False)
        row = torch.arange(own.start, own.stop, device=device)
        self.take_(row, row - own.start)

    @property
    def device_tensor(self) -> Tensor:
        """A tensor of the tables, which says where they are."""
        return self._buffers["row_starts"]  # type: ignore[return-value]

    def _table(self, side: str) -> list[Tensor]:
        return [self._buffers[f"{side}_{part}"] for part in _PARTS]  # type: ignore[misc]

    def _made(self, side: str, which: Tensor, entry: Tensor, room: int = 0) -> dict[str, Tensor]:
        """A table of the pairs (list, entry), with ``room`` places behind or as many as they take."""
        none = torch.zeros(self.n if side == "row" else self.width, dtype=torch.int32, device=which.device)
        with torch.inference_mode(False):
            entries, starts, counts, sizes = made_lists(which.clone(), entry.clone(), none)
            used = torch.tensor(len(entries), device=which.device)
            entries = torch.cat([entries, entries.new_zeros(max(room, len(entries)))])
        tensors = entries, starts, counts, sizes, used
        return {f"{side}_{part}": tensor for part, tensor in zip(_PARTS, tensors, strict=True)}

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels; tables that are full are made afresh, with what they need behind."""
        while True:
            needed = write_label_lists_(*self._table("row"), *self._table("column"), index, labels).tolist()
            if not any(needed):
                return
            for side, room in zip(("row", "column"), needed, strict=True):
                self._buffers.update(self._made(side, *self._listed(side), room=room))

    def rows(self, index: Tensor) -> Tensor:
        """P[index], packed [B, label_bytes(width)]; empty at -1."""
        return gather_label_lists(*self._table("row")[:3], index, self.width)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ, packed [B, label_bytes(n)]; empty at -1."""
        return gather_label_lists(*self._table("column")[:3], index, self.n)

    def lists(self, side: str) -> tuple[Tensor, Tensor, Tensor]:
        """Entries, starts and counts of the lists of all rows, or of all columns."""
        entries, starts, counts, *_ = self._table(side)
        return entries, starts, counts

    def pairs(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(row, column) of what is set in the rows [first, last), by row, then by column."""
        return self._pairs("row", first, last)

    def _pairs(self, side: str, first: int, last: int) -> tuple[Tensor, Tensor]:
        which, entry = self._listed(side, first, last)
        order = (which * self.n + entry).argsort()
        return which[order], entry[order].long()

    def _listed(self, side: str, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """(list int64 [E], entry int32 [E]) of the lists [first, last) of a side, list by list."""
        entries, starts, counts = self.lists(side)
        part = range(len(starts))[first:last]
        index = torch.arange(part.start, part.start + len(part), device=starts.device)
        entry, sizes = gather_list_entries(entries, starts, counts, index)
        return index.repeat_interleave(sizes), entry

    def saved(self, side: str = "row") -> tuple[Tensor, Tensor]:
        """Entries int32 [E] of each list of a side in order, and their counts int32."""
        counts = self.lists(side)[2].clone()
        return self._pairs(side, 0, len(counts))[1].to(torch.int32), counts

    def load_(self, entries: Tensor, counts: Tensor, side: str = "row") -> None:
        """What :meth:`saved` gave; ValueError where it is no such thing. Tables on meta go where it is."""
        held = self.device_tensor
        device = entries.device if held.is_meta else held.device
        lists, most = (self.n, self.width) if side == "row" else (self.width, self.n)
        entries, counts = entries.to(device), counts.to(device)
        fits = (
            entries.dtype == counts.dtype == torch.int32 and entries.dim() == 1 and counts.shape == (lists,)
        )
        if not fits or bool((counts < 0).any()) or int(counts.sum()) != len(entries):
            raise ValueError(
                f"{side}_entries and {side}_counts must be int32 [E] and int32 [{lists}] whose sum is E, got "
                f"{entries.dtype} {list(entries.shape)} and {counts.dtype} {list(counts.shape)}"
            )
        which = torch.arange(lists, device=device).repeat_interleave(counts.long())
        entry = entries.long()
        if bool(((entry < 0) | (entry >= most)).any()) or len((which * most + entry).unique()) != len(which):
            other = "columns" if side == "row" else "rows"
            raise ValueError(f"{side}_entries must be distinct {other} in [0, {most}) of each {side}")
        self.take_(*((which, entry) if side == "row" else (entry, which)))

    def take_(self, row: Tensor, column: Tensor) -> None:
        """Hold these distinct pairs and nothing else; columns are counted from the first own one."""
        made = self._made("row", row, column) | self._made("column", column, row)
        self._buffers.update(made)  # at once: an interrupt finds the old tables, or the new ones
