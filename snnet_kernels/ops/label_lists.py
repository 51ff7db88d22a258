"""The pseudo label memory as lists: the columns of each row of P, and the rows of each column.

P is n × n, or a part of its columns. The first table has one list per row of P, the second one list per column. A
table keeps n lists in one array: entries int32 [places], of which ``used`` int64 [] are taken; starts int64 [n],
counts int32 [n], sizes int32 [n] (places of a list before it has to move).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..checks import check_index_values
from ..layout import label_bytes
from .operation import operation


@operation(
    lambda entries, starts, counts, index, n: index.new_empty(
        index.shape[0], label_bytes(n), dtype=torch.uint8
    )
)
def gather_label_lists(entries: Tensor, starts: Tensor, counts: Tensor, index: Tensor, n: int) -> Tensor:
    """Bits uint8 [B, label_bytes(n)] of the lists at ``index`` [B] with entries in [0, n); empty at -1."""
    check_index_values("index", index, starts.shape[0], lowest=-1)
    return reference.gather_label_lists(entries, starts, counts, index, n)


def _gathered(entries: Tensor, starts: Tensor, counts: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return entries.new_empty(size), counts.new_empty(index.shape)


@operation(_gathered)
def gather_list_entries(
    entries: Tensor, starts: Tensor, counts: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries int32 [E] of the lists at ``index`` [B], one list after the other; and how many each has, int32 [B]."""
    check_index_values("index", index, starts.shape[0])
    return reference.gather_list_entries(entries, starts, counts, index)


@operation(
    lambda row_entries, *rest: rest[-2].new_empty(2),
    writes=(
        "row_entries", "row_starts", "row_counts", "row_sizes", "row_used",
        "column_entries", "column_starts", "column_counts", "column_sizes", "column_used",
    ),
)  # fmt: skip
def write_label_lists_(
    row_entries: Tensor,
    row_starts: Tensor,
    row_counts: Tensor,
    row_sizes: Tensor,
    row_used: Tensor,
    column_entries: Tensor,
    column_starts: Tensor,
    column_counts: Tensor,
    column_sizes: Tensor,
    column_used: Tensor,
    index: Tensor,
    labels: Tensor,
) -> Tensor:
    """Writes P[index] = labels and returns zeros, int64 [2]. If a table lacks room, it writes nothing and returns how
    many places rows and columns still need."""
    check_index_values("index", index, row_starts.shape[0])
    rows = row_entries, row_starts, row_counts, row_sizes, row_used
    columns = column_entries, column_starts, column_counts, column_sizes, column_used
    return reference.write_label_lists_(rows, columns, index, labels)
