"""The pseudo label memory P: writing the rows of a batch, reading rows, reading columns ("who counts me?").

Kept memory: ours keeps two bit matrices, scipy two sparse ones, the dense forms one matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk

from ..case import Batch, Case
from ..equality import as_bool, same
from ..forms import bytes_of
from ..hardware import Work
from ..operation import Operation

DENSE = {"bool": torch.bool, "uint8": torch.uint8, "float32": torch.float32}


class Bits:
    """As this package keeps it, in both orientations. Here and below ``ready`` are labels as ``write`` takes them."""

    ready = staticmethod(attrgetter("labels"))

    def __init__(self, case: Case, *, writes: bool = False) -> None:
        stored = case.own_label_memory() if writes else case.label_memory
        self.rows, self.columns, self.write = stored.rows, stored.columns, stored.write_
        self.held_bytes = bytes_of(stored)


class Dense:
    """A matrix of ``dtype`` [n, n]."""

    ready = staticmethod(attrgetter("dense_labels"))

    def __init__(self, case: Case, *, dtype: torch.dtype, writes: bool = False) -> None:
        self.stored = case.own_dense_labels(dtype)
        self.held_bytes = bytes_of(self.stored)

    def rows(self, index: Tensor) -> Tensor:
        return self.stored[index]

    def columns(self, index: Tensor) -> Tensor:
        return self.stored[:, index].t()

    def write(self, index: Tensor, labels: Tensor) -> None:
        self.stored[index] = labels.to(self.stored.dtype)


class Sparse:
    """scipy's CSR for rows and CSC for columns; a write rebuilds both, because their entries move."""

    def __init__(self, case: Case, *, writes: bool = False) -> None:
        self.n = case.shape.n
        self._build(*(part.numpy() for part in case.label_memory.pairs()))
        parts = [part for matrix in (self.by_row, self.by_column) for part in vars(matrix).values()]
        self.held_bytes = sum(part.nbytes for part in parts if isinstance(part, np.ndarray))

    def _build(self, rows: np.ndarray, columns: np.ndarray) -> None:
        from scipy import sparse

        ones = np.ones(len(rows), dtype=np.uint8)
        self.by_row = sparse.csr_matrix((ones, (rows, columns)), shape=(self.n, self.n))
        self.by_column = self.by_row.tocsc()

    def rows(self, index: Tensor) -> Any:
        return self.by_row[index.numpy()]

    def columns(self, index: Tensor) -> Any:
        return self.by_column[:, index.numpy()]

    def write(self, index: Tensor, entries: tuple[np.ndarray, np.ndarray]) -> None:
        """``entries``: (position in the batch, column), which another program would have; ``index`` is distinct."""
        kept = np.ones(self.n, dtype=bool)
        kept[index.numpy()] = False
        row = np.repeat(np.arange(self.n), np.diff(self.by_row.indptr))
        stays = kept[row]
        written, column = index.numpy()[entries[0]], entries[1]
        self._build(
            np.concatenate([row[stays], written]), np.concatenate([self.by_row.indices[stays], column])
        )

    @staticmethod
    def ready(batch: Batch) -> tuple[Any, ...]:
        return tuple(np.nonzero(labels.numpy()) for labels in batch.dense_labels)


class Writer:
    """Writes the symmetric and the main labels of a batch in turn, so that some bits always change."""

    def __init__(self, case: Case, make: Callable[..., Any]) -> None:
        self.stored = make(case, writes=True)
        self.held_bytes = self.stored.held_bytes
        self.labels = {id(batch): self.stored.ready(batch) for batch in case.batches}
        self.calls: Counter[int] = Counter()

    def __call__(self, batch: Batch) -> Any:
        self.calls[id(batch)] += 1
        self.stored.write(batch.index, self.labels[id(batch)][self.calls[id(batch)] % 2])
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


def operation(name: str, what: str, times: int, gate: Any, call: Any = None, **options: Any) -> Operation:
    """The least work: ``times`` the rows of bits of a batch."""

    def work(case: Case) -> Work:
        return Work(times * case.shape.batch * sk.label_bytes(case.shape.n))

    title = f"Label memory: {what}"
    return Operation(name, title, gate, call, uses_features=False, work=work, **options)


columns = operation(
    "label-columns", "reading columns", 2, same_columns, lambda stored, batch: stored.columns(batch.index)
)
rows = operation("label-rows", "reading rows", 2, same_rows, lambda stored, batch: stored.rows(batch.index))
write = operation("label-write", "writing rows", 3, same_writes, inputs=("labels", "dense_labels"))
OPERATIONS = (columns, rows, write)


def keep_as(name: str, make: Callable[..., Any], **options: Any) -> None:
    """P in this form is a contender of all three."""
    for reading in (columns, rows):
        reading.contender(name, make, **options)
    write.contender(name, partial(Writer, make=make), **options)


keep_as("snnet", Bits)
for _name, _dtype in DENSE.items():
    keep_as(_name, partial(Dense, dtype=_dtype))
keep_as("scipy", Sparse, devices=("cpu",))
