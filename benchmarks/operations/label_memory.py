"""The pseudo label memory P: writing the rows of a batch, reading rows, reading columns ("who counts me?").

Kept memory: ours keeps two bit matrices, scipy two sparse ones, the dense forms one matrix or the matrix twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..case import Batch, Case
from ..equality import as_bool, same
from ..forms import DenseLabels, MirroredLabels
from ..operation import Operation
from ..shapes import one_dim


class Sparse:
    """scipy's CSR for rows and CSC for columns; a write rebuilds both, because their entries move."""

    def __init__(self, case: Case) -> None:
        self.n = case.shape.n
        self._build(*(part.numpy() for part in case.label_memory.pairs()))
        before = {"by_row": self.by_row, "by_column": self.by_column}
        case.on_reset(lambda: vars(self).update(before))

    def buffers(self) -> list[np.ndarray]:
        parts = [part for matrix in (self.by_row, self.by_column) for part in vars(matrix).values()]
        return [part for part in parts if isinstance(part, np.ndarray)]

    def _build(self, rows: np.ndarray, columns: np.ndarray) -> None:
        from scipy import sparse

        ones = np.ones(len(rows), dtype=np.uint8)
        self.by_row = sparse.csr_matrix((ones, (rows, columns)), shape=(self.n, self.n))
        self.by_column = self.by_row.tocsc()

    def rows(self, index: Tensor) -> Any:
        return self.by_row[index.numpy()]

    def columns(self, index: Tensor) -> Any:
        return self.by_column[:, index.numpy()]

    def write_(self, index: Tensor, entries: tuple[np.ndarray, np.ndarray]) -> None:
        """``entries``: (position in the batch, column), which another program would have; ``index`` is distinct."""
        kept = np.ones(self.n, dtype=bool)
        kept[index.numpy()] = False
        row = np.repeat(np.arange(self.n), np.diff(self.by_row.indptr))
        stays = kept[row]
        written, column = index.numpy()[entries[0]], entries[1]
        self._build(
            np.concatenate([row[stays], written]), np.concatenate([self.by_row.indices[stays], column])
        )


def entries_of(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    return [np.nonzero(labels.numpy()) for labels in batch.dense_labels]


class Writer:
    """Writes the symmetric and the main labels of a batch in turn.

    After a reset P holds the main labels. Odd calls write the symmetric ones and even calls the main ones, so every
    call changes bits.

    ``make(case)`` keeps P, ``ready(batch)`` are the three label sets as it takes them.
    """

    def __init__(self, case: Case, make: Callable[[Case], Any], ready: Callable[[Batch], Any]) -> None:
        self.stored = make(case)
        self.buffers = self.stored.buffers
        self.labels = {batch: ready(batch) for batch in case.batches}
        self.calls = 0
        case.on_reset(lambda: setattr(self, "calls", 0))

    def __call__(self, batch: Batch) -> Any:
        self.calls += 1
        self.stored.write_(batch.index, self.labels[batch][self.calls % 2])
        return self.stored


def same_columns(case: Case, batch: Batch, found: Any) -> None:
    same("columns", as_bool(found, case.shape.n), case.label_columns(batch.index))


def same_rows(case: Case, batch: Batch, found: Any) -> None:
    same("rows", as_bool(found, case.shape.n), case.label_rows(batch.index))


def same_writes(case: Case, batch: Batch, stored: Any) -> None:
    """The first write is of the symmetric labels."""
    written, expected = batch.dense_labels[1], case.label_columns(batch.index)
    expected[:, batch.index] = written[:, batch.index].t()
    same("rows", as_bool(stored.rows(batch.index), case.shape.n), written)
    same("columns", as_bool(stored.columns(batch.index), case.shape.n), expected)


def read_columns(stored: Any, batch: Batch) -> Any:
    return stored.columns(batch.index)


def read_rows(stored: Any, batch: Batch) -> Any:
    return stored.rows(batch.index)


columns = Operation(
    "label-columns", "Label memory: reading columns", same_columns, read_columns, shapes=one_dim
)
rows = Operation("label-rows", "Label memory: reading rows", same_rows, read_rows, shapes=one_dim)
write = Operation(
    "label-write",
    "Label memory: writing rows",
    same_writes,
    inputs=("labels", "dense_labels"),
    shapes=one_dim,
)
OPERATIONS = (columns, rows, write)


def keep_as(name: str, make: Callable[[Case], Any], ready: Callable[[Batch], Any], **options: Any) -> None:
    """P in this form is a contender of all three."""
    columns.contender(name, make, **options)
    rows.contender(name, make, **options)
    write.contender(name, partial(Writer, make=make, ready=ready), **options)


keep_as("snnet", Case.own_label_memory, attrgetter("labels"))
for _dtype in (torch.bool, torch.uint8, torch.float32):
    _name = str(_dtype).removeprefix("torch.")
    keep_as(_name, partial(DenseLabels, dtype=_dtype), attrgetter("dense_labels"))
keep_as("bool-mirrored", MirroredLabels, attrgetter("dense_labels"))
keep_as("scipy", Sparse, entries_of, devices=("cpu",))
