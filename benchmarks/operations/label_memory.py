"""The pseudo label memory P: writing the rows of a batch, reading rows, reading columns ("who counts me?").

Kept memory: ours keeps two bit matrices, scipy two sparse ones, the dense forms one matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk

from ..case import Batch, Case
from ..equality import as_bool, same
from ..hardware import Work
from ..operation import Operation, Run
from ..peers.storage import SparseLabels, dense_copy, stored_at
from .label_step import label_memory

DENSE = {"bool": torch.bool, "uint8": torch.uint8, "float32": torch.float32}


def moved(case: Case, *, times: int) -> Work:
    """Rows of bits of a batch."""
    return Work(times * case.shape.batch * sk.label_bytes(case.shape.n))


def bytes_of(dtype: torch.dtype) -> Callable[[Case], int]:
    return lambda case: case.shape.n**2 * dtype.itemsize


def bytes_of_sparse(case: Case) -> int:
    """Entries with a byte and an int32 each, and row or column starts, twice."""
    entries = sum(int(case.label_rows(index).sum()) for index in torch.arange(case.shape.n).split(1024))
    return 2 * (5 * entries + 4 * (case.shape.n + 1))


def same_columns(case: Case, batch: Batch, found: Any) -> None:
    same("columns", as_bool(found, case.shape.n), case.label_columns(batch.index))


def same_rows(case: Case, batch: Batch, found: Any) -> None:
    same("rows", as_bool(found, case.shape.n), case.label_rows(batch.index))


def same_writes(case: Case, batch: Batch, stored: Any) -> None:
    """The first write is of the symmetric labels."""
    written, expected = batch.dense_labels[1], case.label_columns(batch.index)
    expected[:, batch.index] = written[:, batch.index].t()
    rows, columns = stored_at(stored, batch.index, case.shape.n)
    same("rows", rows, written)
    same("columns", columns, expected)


def operation(name: str, title: str, gate: Any, times: int, inputs: tuple[str, ...] = ()) -> Operation:
    return Operation(name, title, gate, inputs=inputs, uses_features=False, work=partial(moved, times=times))


columns = operation("label-columns", "Label memory: reading columns", same_columns, 2)
rows = operation("label-rows", "Label memory: reading rows", same_rows, 2)
write = operation("label-write", "Label memory: writing rows", same_writes, 3, ("labels", "dense_labels"))


def writing(stored: Any, case: Case, write_: Callable[[Tensor, Any], None], prepared: Any) -> Run:
    """Of a batch its symmetric and its main labels are written in turn, so that some bits always change.

    ``prepared(batch)`` are both in the form that ``write_`` takes.
    """
    labels = {id(batch): prepared(batch) for batch in case.batches}
    calls: Counter[int] = Counter()

    def run(batch: Batch) -> Any:
        calls[id(batch)] += 1
        write_(batch.index, labels[id(batch)][calls[id(batch)] % 2])
        return stored

    return run


def reading(make: Callable[[Case], Any], read: Callable[[Any, Tensor], Any]) -> Callable[[Case], Run]:
    """Reads of P in the form that ``make`` gives."""

    def build(case: Case) -> Run:
        stored = make(case)
        return lambda batch: read(stored, batch.index)

    return build


def write_bits(case: Case) -> Run:
    stored = case.own_label_memory()
    return writing(stored, case, stored.write_, lambda batch: batch.labels)


columns.contender("snnet", keeps=label_memory)(
    reading(lambda case: case.label_memory, sk.PseudoLabelMemory.columns)
)
rows.contender("snnet", keeps=label_memory)(
    reading(lambda case: case.label_memory, sk.PseudoLabelMemory.rows)
)
write.contender("snnet", keeps=label_memory)(write_bits)


def add_dense(name: str, dtype: torch.dtype) -> None:
    """P as a matrix of ``dtype``."""

    def dense(case: Case) -> Tensor:
        return dense_copy(case, dtype)

    def write_dense(case: Case) -> Run:
        stored = dense(case)

        def write_(index: Tensor, labels: Tensor) -> None:
            stored[index] = labels.to(dtype)

        return writing(stored, case, write_, lambda batch: batch.dense_labels)

    keeps = bytes_of(dtype)
    columns.contender(name, keeps=keeps)(reading(dense, lambda stored, index: stored[:, index].t()))
    rows.contender(name, keeps=keeps)(reading(dense, lambda stored, index: stored[index]))
    write.contender(name, keeps=keeps)(write_dense)


for _name, _dtype in DENSE.items():
    add_dense(_name, _dtype)


def write_sparse(case: Case) -> Run:
    """Entries as (position in the batch, column), which another program would have."""
    stored = SparseLabels(case)

    def write_(index: Tensor, entries: Any) -> None:
        stored.write(index.numpy(), entries)

    def entries(batch: Batch) -> list[tuple[np.ndarray, ...]]:
        return [
            tuple(part.numpy() for part in labels.nonzero(as_tuple=True)) for labels in batch.dense_labels[:2]
        ]

    return writing(stored, case, write_, entries)


_sparse = {"requires": "scipy", "devices": ("cpu",), "keeps": bytes_of_sparse}
columns.contender("scipy", read=lambda found: found.T, **_sparse)(
    reading(SparseLabels, lambda stored, index: stored.columns(index.numpy()))
)
rows.contender("scipy", **_sparse)(reading(SparseLabels, lambda stored, index: stored.rows(index.numpy())))
write.contender("scipy", **_sparse)(write_sparse)
