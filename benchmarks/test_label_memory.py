"""The pseudo label memory P: writing the rows of a batch, reading rows, reading columns ("who counts me?").

Held memory: ours keeps two bit matrices, scipy two sparse ones, the dense forms one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk

from .bounds import Work
from .case import Batch, Case
from .equality import as_bool, same
from .operation import Operation, Run
from .peers.storage import SparseLabels, dense_copy, stored_at

DENSE = {"bool": torch.bool, "uint8": torch.uint8, "float32": torch.float32}


def moved_rows(case: Case, times: int) -> Work:
    return Work(times * case.shape.batch * sk.label_bytes(case.shape.n))


def bytes_of_bits(case: Case) -> int:
    return 2 * case.shape.n * sk.label_bytes(case.shape.n)


def bytes_of(dtype: torch.dtype) -> Callable[[Case], int]:
    return lambda case: case.shape.n**2 * dtype.itemsize


def bytes_of_sparse(case: Case) -> int:
    """Entries with a byte and an int32 each, and row or column starts, twice."""
    entries = sum(int(case.label_rows(index).sum()) for index in torch.arange(case.shape.n).split(1024))
    return 2 * (5 * entries + 4 * (case.shape.n + 1))


def over_dense(build: Callable[[Tensor, Case], Run], dtype: torch.dtype) -> Callable[[Case], Run]:
    """``build`` for P as a matrix of ``dtype``."""
    return lambda case: build(dense_copy(case, dtype), case)


# Columns


def gate_columns(case: Case, batch: Batch, found: Any) -> None:
    expected = case.label_memory.to_dense()[:, batch.index].t()
    same("columns", as_bool(found, case.shape.n), expected)


columns = Operation(
    "label-columns",
    "columns of the label memory",
    gate_columns,
    inputs=("label_memory",),
    uses_features=False,
    work=lambda case: moved_rows(case, 2),
)


@columns.contender("snnet", holds=bytes_of_bits)
def columns_of_bits(case: Case) -> Run:
    return lambda batch: case.label_memory.columns(batch.index)


def columns_of_dense(dense: Tensor, case: Case) -> Run:
    return lambda batch: dense[:, batch.index]


for _name, _dtype in DENSE.items():
    columns.contender(_name, read=Tensor.t, holds=bytes_of(_dtype))(over_dense(columns_of_dense, _dtype))


@columns.contender(
    "scipy", requires="scipy", devices=("cpu",), read=lambda found: found.T, holds=bytes_of_sparse
)
def columns_of_csc(case: Case) -> Run:
    sparse = SparseLabels(case)
    return lambda batch: sparse.columns(batch.index.numpy())


@columns.benchmark()
def test_label_columns(race, contender, benchmark):
    race.report(contender, benchmark)


# Rows


def gate_rows(case: Case, batch: Batch, found: Any) -> None:
    same("rows", as_bool(found, case.shape.n), case.label_rows(batch.index))


rows = Operation(
    "label-rows",
    "rows of the label memory",
    gate_rows,
    inputs=("label_memory",),
    uses_features=False,
    work=lambda case: moved_rows(case, 2),
)


@rows.contender("snnet", holds=bytes_of_bits)
def rows_of_bits(case: Case) -> Run:
    return lambda batch: case.label_memory.rows(batch.index)


def rows_of_dense(dense: Tensor, case: Case) -> Run:
    return lambda batch: dense[batch.index]


for _name, _dtype in DENSE.items():
    rows.contender(_name, holds=bytes_of(_dtype))(over_dense(rows_of_dense, _dtype))


@rows.contender("scipy", requires="scipy", devices=("cpu",), holds=bytes_of_sparse)
def rows_of_csr(case: Case) -> Run:
    sparse = SparseLabels(case)
    return lambda batch: sparse.rows(batch.index.numpy())


@rows.benchmark()
def test_label_rows(race, contender, benchmark):
    race.report(contender, benchmark)


# Writing


class Turns:
    """Which labels to write: of a batch its symmetric and its main labels in turn, so that some bits always change."""

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}

    def __call__(self, batch: Batch) -> int:
        calls = self._calls[id(batch)] = self._calls.get(id(batch), 0) + 1
        return calls % 2


def gate_write(case: Case, batch: Batch, stored: Any) -> None:
    """The first write is of the symmetric labels."""
    expected = case.label_memory.to_dense()
    expected[batch.index] = batch.dense_labels[1]
    found = stored_at(stored, batch.index, case.shape.n)
    same("rows", found[0], expected[batch.index])
    same("columns", found[1], expected[:, batch.index].t())


write = Operation(
    "label-write",
    "writing rows of the label memory",
    gate_write,
    inputs=("label_memory", "labels", "dense_labels"),
    writes=True,
    uses_features=False,
    work=lambda case: moved_rows(case, 3),
)


@write.contender("snnet", holds=bytes_of_bits)
def write_bits(case: Case) -> Run:
    turn = Turns()

    def run(batch: Batch) -> sk.PseudoLabelMemory:
        case.label_memory.write_(batch.index, batch.labels[turn(batch)])
        return case.label_memory

    return run


def write_dense(dense: Tensor, case: Case) -> Run:
    turn = Turns()

    def run(batch: Batch) -> Tensor:
        dense[batch.index] = batch.dense_labels[turn(batch)].to(dense.dtype)
        return dense

    return run


for _name, _dtype in DENSE.items():
    write.contender(_name, holds=bytes_of(_dtype))(over_dense(write_dense, _dtype))


@write.contender("scipy", requires="scipy", devices=("cpu",), holds=bytes_of_sparse)
def write_sparse(case: Case) -> Run:
    sparse, turn = SparseLabels(case), Turns()
    entries = {
        (id(batch), which): tuple(part.numpy() for part in batch.dense_labels[which].nonzero(as_tuple=True))
        for batch in case.batches
        for which in range(2)
    }

    def run(batch: Batch) -> SparseLabels:
        sparse.write(batch.index.numpy(), entries[id(batch), turn(batch)])
        return sparse

    return run


@write.benchmark()
def test_label_write(race, contender, benchmark):
    race.report(contender, benchmark)
