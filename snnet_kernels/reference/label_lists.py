"""The pseudo label memory as lists, see :mod:`snnet_kernels.ops.label_lists`: written by making all lists afresh."""

from __future__ import annotations

import torch
from torch import Tensor

from ..label_list_layout import list_entries, made_lists
from .label_memory import pack_labels, unpack_labels

Table = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # entries, starts, counts, sizes, used


def gather_label_lists(entries: Tensor, starts: Tensor, counts: Tensor, index: Tensor, n: int) -> Tensor:
    """Packed rows [B, label_bytes(n)] of the lists at ``index`` [B], empty at -1."""
    at = index.clamp_min(0)
    which, columns = list_entries(entries, starts[at], torch.where(index < 0, 0, counts[at]))
    dense = torch.zeros(len(index), n, dtype=torch.bool, device=index.device)
    dense[which, columns] = True
    return pack_labels(dense)


def gather_list_entries(
    entries: Tensor, starts: Tensor, counts: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries [E] of the lists at ``index`` [B], one after the other, and how many each has."""
    sizes = counts[index]
    return list_entries(entries, starts[index], sizes)[1].to(torch.int32), sizes


def write_label_lists_(rows: Table, columns: Table, index: Tensor, labels: Tensor) -> Tensor:
    """P[index] = labels where both tables have the places; how many they need otherwise, int64 [2]."""
    n, columns_of_p = len(rows[1]), len(columns[1])
    row, column = list_entries(*rows[:3])
    kept = torch.ones(n, dtype=torch.bool, device=index.device)
    kept[index] = False
    last = torch.full((n,), -1, device=index.device)  # of a repeated index the last entry
    last = last.scatter_reduce(0, index, torch.arange(len(index), device=index.device), "amax")
    written = (last >= 0).nonzero().flatten()
    entry, fresh = unpack_labels(labels[last[written]], columns_of_p).nonzero().unbind(1)
    row, column = torch.cat([row[kept[row]], written[entry]]), torch.cat([column[kept[row]], fresh])
    made = [made_lists(row, column, rows[3]), made_lists(column, row, columns[3])]
    needed = [len(entries) for entries, *_ in made]
    if any(need > len(table[0]) for need, table in zip(needed, (rows, columns), strict=True)):
        used = [int(table[4]) for table in (rows, columns)]
        return torch.tensor(
            [max(1, need - u) for need, u in zip(needed, used, strict=True)], device=index.device
        )
    for table, (entries, starts, counts, sizes), need in zip((rows, columns), made, needed, strict=True):
        table[0][:need] = entries
        for old, new in zip(
            table[1:], (starts, counts, sizes, torch.tensor(need, device=index.device)), strict=True
        ):
            old.copy_(new)
    return torch.zeros(2, dtype=torch.int64, device=index.device)
