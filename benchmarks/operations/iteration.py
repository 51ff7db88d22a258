"""A whole iteration without the backbone: product, labels, label memory, loss, gradient, memory and lists update.

The yardstick on a CPU is the bare product of features and memory, written in the fastest of three ways.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from snnet_kernels import reference

from ..case import WEIGHTS, Batch, Case
from ..clock import clock_of
from ..equality import close, same_update
from ..hardware import Work, product
from ..operation import Operation, Run, matmul_precision
from ..ours import Head
from ..peers.forms import FORMS, Form
from .label_step import and_bools, label_memory, lists_and_p, same_written_labels
from .label_step import least_work as least_work_of_labels
from .similarity import WAYS

TF32_LOSS = 1e-2  # of a loss with products in tf32, relative


class Answer(NamedTuple):
    """Loss and gradient, and as they were written memory, lists or S beside it, and P."""

    loss: Tensor
    gradient: Tensor
    memory: Tensor
    kept: Any
    stored: Any


def expected_loss(case: Case, batch: Batch, *, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's loss of ``batch`` and its gradient, with the main ``labels`` packed [B, label_bytes]."""
    neighbor = reference.nearest_neighbors(case.memory, batch.index)[0][:, 0]
    stored = case.label_memory
    sets = [labels, reference.pack_labels(case.label_columns(batch.index)), stored.rows(neighbor)]
    return reference.fused_mutual_label_loss_with_grad(
        batch.features, case.memory, None, sets, list(WEIGHTS), "mmcl", 5.0, 0.01
    )


def same_iteration(case: Case, batch: Batch, answer: Answer) -> None:
    """Loss, gradient, memory, lists and label memory are those of the reference, step by step."""
    same_update(case, batch, answer.memory, answer.kept)
    main = same_written_labels(
        case, batch, answer.stored
    )  # the reference's, or where rounding decides their like
    loss, gradient = expected_loss(case, batch, labels=reference.pack_labels(main))
    close("loss", answer.loss, loss, absolute=0, relative=1e-5)
    close("gradient", answer.gradient, gradient, absolute=0, relative=1e-5)


def similar_loss(case: Case, batch: Batch, answer: Answer) -> None:
    """For products in tf32: the loss within their rounding; memory and lists are not compared."""
    loss, _ = expected_loss(case, batch, labels=case.expected_labels)
    close("loss", answer.loss, loss, absolute=0, relative=TF32_LOSS)


def least_work(case: Case) -> Work:
    whole = product(case.shape.batch, case.shape.n, case.shape.d)
    return Work(whole.bytes + least_work_of_labels(case).bytes, whole.operations, whole.products)


iteration = Operation("iteration", "A whole iteration without the backbone", same_iteration, work=least_work)


def iterating(make: Callable[[Case], Form]) -> Callable[[Case], Run]:
    def build(case: Case) -> Run:
        form = make(case)
        _ = form.stored  # made before the clock runs
        return lambda batch: Answer(*form.iteration(batch), form.memory, form.kept, form.stored)

    return build


iteration.ours(keeps=lists_and_p)(iterating(Head))
iteration.contender("snnet-streaming", keeps=label_memory)(iterating(lambda case: Head(case, lists=False)))


def captured_in(precision: str) -> Callable[[Case], Form]:
    """Captured with products of ``precision``: what a graph does is decided when it is captured."""

    def make(case: Case) -> Form:
        with matmul_precision(precision):
            return Head(case, captured=True)

    return make


for _name, _precision, _gate in (
    ("snnet-graph", "ieee", same_iteration),
    ("snnet-graph-tf32x3", "tf32x3", same_iteration),
    ("snnet-graph-tf32", "tf32", similar_loss),
):
    iteration.contender(_name, devices=("cuda",), precision=_precision, gate=_gate, keeps=lists_and_p)(
        iterating(captured_in(_precision))
    )
for _name in ("pytorch-cache", "compile-static", "pytorch", "loop"):
    _form, _options = FORMS[_name]
    iteration.contender(_name, **and_bools(_options))(iterating(_form))


@iteration.contender("bare-product", gated=False)
def fastest_product(case: Case) -> Run:
    """The fastest of three ways to write f Mᵀ."""
    clock = clock_of(case.device)

    def seconds(run: Run) -> float:
        return statistics.median(clock.cold(lambda: run(case.batches[0])) for _ in range(5))

    return min((way(case) for way in WAYS.values()), key=seconds)
