"""Momentum update of the exemplar memory: alone, and with neighbour lists (or S) brought up to date."""

from __future__ import annotations

from collections.abc import Callable

from ..case import Batch, Case
from ..equality import same_update
from ..hardware import Work
from ..operation import Operation, Run
from ..ours import Ours
from ..peers.forms import FORMS, LOOP_SAMPLES, CompiledForm, Form, LoopForm, matrix_bytes
from ..peers.memory import blend_, refresh_rows_
from .label_step import lists


def gate(case: Case, batch: Batch, form: Form) -> None:
    same_update(case, batch, form.memory, form.kept)


def blending(case: Case) -> Work:
    """Rows of M read and written, features read."""
    return Work(12.0 * case.shape.batch * case.shape.d)


def with_entries(case: Case) -> Work:
    """Besides: s read, the entries of the batch's rows and their mirrors written."""
    entries = float(case.lists.counts[case.batches[0].index].sum())
    return Work(blending(case).bytes + 4.0 * case.shape.batch * case.shape.n + 24 * entries)


alone = Operation("memory-update", "Memory update", gate, work=blending)
with_lists = Operation(
    "lists-update", "Memory and lists update", gate, inputs=("similarity",), work=with_entries
)


def updating(make: Callable[[Case], Form]) -> Callable[[Case], Run]:
    def build(case: Case) -> Run:
        form = make(case)

        def run(batch: Batch) -> Form:
            form.update_(batch.index, batch.features, None if form.kept is None else batch.similarity)
            return form

        return run

    return build


alone.ours()(updating(lambda case: Ours(case, lists=False)))
alone.contender("pytorch")(updating(Form))
alone.contender("compile")(updating(CompiledForm))
alone.contender("loop", samples=LOOP_SAMPLES)(updating(LoopForm))
with_lists.ours(keeps=lists)(updating(Ours))
for _name in ("pytorch-cache", "compile-static"):
    with_lists.contender(_name, **FORMS[_name][1])(updating(FORMS[_name][0]))


@with_lists.contender("pytorch-fresh-rows", keeps=matrix_bytes)
def product_with_the_memory(case: Case) -> Run:
    form = Form(case, matrix=True)

    def run(batch: Batch) -> Form:
        blend_(form.memory, batch.index, batch.features, case.momentum)
        refresh_rows_(form.kept, form.memory, batch.index)
        return form

    return run
