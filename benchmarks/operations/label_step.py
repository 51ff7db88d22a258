"""The label work of an iteration with s at hand: the three label sets, and the update of P, memory and lists.

All of an iteration but the product s and the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snnet_kernels as sk

from ..case import Batch, Case, held_bytes
from ..equality import as_bool, same, same_labels, same_neighbors, same_update
from ..hardware import Work
from ..operation import Operation, Run
from ..ours import Ours
from ..peers.forms import FORMS, Form, Step
from ..peers.storage import stored_at


def same_step(case: Case, batch: Batch, step: Step) -> None:
    same_update(case, batch, step.memory, step.kept)
    main, symmetric, of_neighbor = (as_bool(labels, case.shape.n) for labels in step.labels)
    same_labels(case, batch, main)
    same_neighbors(case, batch, step.neighbors, 1)
    same("symmetric labels", symmetric, case.label_columns(batch.index))
    same("neighbour labels", of_neighbor, case.label_rows(step.neighbors[0].reshape(-1)))
    same("main labels", main, same_written_labels(case, batch, step.stored))


def same_written_labels(case: Case, batch: Batch, stored: Any) -> Any:
    """``stored`` is P with the main labels of ``batch`` written: its rows of the batch, bool [B, n]."""
    rows, columns = stored_at(stored, batch.index, case.shape.n)
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


def lists(case: Case) -> int:
    """Bytes of the lists: 12 for each of n · 256 places, and a count and a floor a row."""
    return held_bytes(case.lists)


def label_memory(case: Case) -> int:
    """Bytes of P as ours keeps it, in both orientations."""
    return held_bytes(case.label_memory.buffers())


def lists_and_p(case: Case) -> int:
    return lists(case) + label_memory(case)


def and_bools(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a form that keeps P as a bool matrix, too."""
    keeps = options.get("keeps")
    return {**options, "keeps": lambda case: case.shape.n**2 + (keeps(case) if keeps else 0)}


label_step = Operation(
    "label-step",
    "The three label sets, and the update of P, memory and lists",
    same_step,
    inputs=("similarity",),
    work=least_work,
    grows=("snnet", "snnet-streaming", *FORMS),
)


def stepping(make: Callable[[Case], Form]) -> Callable[[Case], Run]:
    def build(case: Case) -> Run:
        form = make(case)
        _ = form.stored  # made before the clock runs
        return form.step

    return build


label_step.ours(keeps=lists_and_p)(stepping(Ours))
label_step.contender("snnet-streaming", keeps=label_memory)(stepping(lambda case: Ours(case, lists=False)))
for _name, (_form, _options) in FORMS.items():
    label_step.contender(_name, **and_bools(_options))(stepping(_form))
