"""How lists of labels are kept: n lists in one array, with room to grow in place."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SIZE = 8  # places of a list that has entries, which double as it grows


def list_entries(entries: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every entry of the lists: (list int64 [E], entry int64 [E]), list by list."""
    counts = counts.long()
    which = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    place = torch.arange(len(which), device=counts.device) - (counts.cumsum(0) - counts)[which]
    return which, entries[starts[which] + place].long()


def made_lists(which: Tensor, entry: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists of the pairs (list, entry), with at least the ``sizes`` [n]: entries, starts, counts, sizes."""
    if which.is_meta:  # shapes alone, of lists of one entry each
        entries = which.new_empty(SMALLEST_SIZE * len(which), dtype=torch.int32)
        return entries, sizes.long(), sizes.clone(), sizes.clone()
    n = len(sizes)
    order = which.sort(stable=True).indices
    which, entry = which[order], entry[order]
    counts = torch.bincount(which, minlength=n)
    wanted = (2 ** counts.clamp_min(1).double().log2().ceil().long()).clamp_min(SMALLEST_SIZE)
    sizes = torch.where(counts > sizes, wanted, sizes.long())
    starts = sizes.cumsum(0) - sizes
    entries = torch.zeros(int(sizes.sum()), dtype=torch.int32, device=which.device)
    place = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[which]
    entries[starts[which] + place] = entry.to(torch.int32)
    return entries, starts, counts.to(torch.int32), sizes.to(torch.int32)
