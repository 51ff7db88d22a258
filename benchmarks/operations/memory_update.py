"""Momentum update of the exemplar memory: alone, and with neighbour lists (or S) brought up to date."""

from __future__ import annotations

from functools import partial

from ..case import Batch, Case
from ..equality import same_update
from ..forms import CompiledForm, Form, LoopForm, add_forms
from ..operation import Operation
from ..ours import Ours


def gate(case: Case, batch: Batch, form: Form) -> None:
    same_update(case, batch, form.memory, form.kept)


def update(form: Form, batch: Batch) -> Form:
    form.update_(batch.index, batch.features, None if form.kept is None else batch.similarity)
    return form


alone = Operation("memory-update", "Memory update", gate, update)
alone.contender("snnet", partial(Ours, lists=False))
alone.contender("pytorch", Form)
alone.contender("compile", CompiledForm)
alone.contender("loop", LoopForm)

with_lists = Operation(
    "lists-update",
    "Memory and lists update",
    gate,
    update,
    inputs=("similarity",),
)
with_lists.contender("snnet", Ours)
add_forms(with_lists, "pytorch-cache", "compile-cache", "compile-static")
OPERATIONS = (alone, with_lists)
