"""The label work of an iteration with s at hand: the three label sets, and the update of P, memory and lists.

All of an iteration but the product s and the loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

import snnet_kernels as sk

from ..case import Batch, Case
from ..equality import as_bool, same, same_labels, same_neighbors, same_update
from ..forms import FORMS, Form, add_forms
from ..hardware import Work
from ..operation import Operation
from ..ours import Ours


def same_step(case: Case, batch: Batch, answer: tuple[Any, Any, Form]) -> None:
    labels, neighbors, form = answer
    same_update(case, batch, form.memory, form.kept)
    main, symmetric, of_neighbor = (as_bool(each, case.shape.n) for each in labels)
    same_labels(case, batch, main)
    same_neighbors(case, batch, neighbors, 1)
    same("symmetric labels", symmetric, case.label_columns(batch.index))
    same("neighbour labels", of_neighbor, case.label_rows(neighbors[0].reshape(-1)))
    same("main labels", main, same_written_labels(case, batch, form.stored))


def same_written_labels(case: Case, batch: Batch, stored: Any) -> Tensor:
    """``stored`` is P with the main labels of ``batch`` written: its rows of the batch, bool [B, n]."""
    parts = stored.rows(batch.index), stored.columns(batch.index)
    rows, columns = (as_bool(part, case.shape.n) for part in parts)
    same_labels(case, batch, rows)
    expected = case.label_columns(batch.index)
    expected[:, batch.index] = rows[:, batch.index].t()
    same("columns of P", columns, expected)
    return rows


def least_work(case: Case) -> Work:
    """What labels read of the lists; s read once, the batch's rows of lists and their mirrors written; rows of M; bits
    of P."""
    shape = case.shape
    entries = float(case.lists.counts[case.batches[0].index].sum())
    moved = case.listed_bytes + 24 * entries + 12.0 * shape.batch * shape.d
    return Work(moved + 4.0 * shape.batch * shape.n + 5.0 * shape.batch * sk.label_bytes(shape.n))


label_step = Operation(
    "label-step",
    "The three label sets, and the update of P, memory and lists",
    same_step,
    lambda form, batch: (*form.step(batch), form),
    inputs=("similarity",),
    needs=("stored", "product"),
    work=least_work,
    grows=("snnet", "snnet-streaming", *FORMS),
)
OPERATIONS = (label_step,)
label_step.ours(Ours)
label_step.contender("snnet-streaming", partial(Ours, lists=False))
add_forms(label_step, *FORMS)
