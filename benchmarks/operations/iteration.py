"""Whole iterations without the backbone: product, labels, label memory, loss, gradient, memory and lists update.

Of one iteration loss, gradient and all that is written are compared. The yardstick on a CPU is the bare product of
features and memory, in the fastest way to write it.

Twenty iterations run one after the other: each reads what the last one left. Labels of 200 rows are checked at the
end. They are measured at the growth shapes: a million images, with ``--size million``, takes half an hour on two cores
until the lists are built.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD, WEIGHTS, Batch, Case
from ..equality import close, same_predictions, same_update
from ..forms import Form, add_forms
from ..hardware import Work, product
from ..operation import GPU, Operation
from ..ours import Head
from ..pytorch import DELTA, RATIO, fastest
from ..shapes import Shape, shapes
from .label_step import least_work as least_work_of_labels
from .label_step import same_written_labels
from .similarity import WAYS, similarity

TF32_LOSS = 1e-2  # of a loss with products in tf32, relative
STEPS, CHECKED = 20, 200
Answer = tuple[
    Tensor, Tensor, Form
]  # loss, gradient, and what has written memory, what is kept beside it, and P


def expected_loss(case: Case, batch: Batch, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's loss of ``batch`` and its gradient, with the main ``labels`` packed [B, label_bytes]."""
    neighbor = reference.nearest_neighbors(case.memory, batch.index)[0][:, 0]
    stored = case.label_memory
    sets = [labels, reference.pack_labels(case.label_columns(batch.index)), stored.rows(neighbor)]
    return reference.fused_mutual_label_loss_with_grad(
        batch.features, case.memory, None, sets, list(WEIGHTS), "mmcl", DELTA, RATIO
    )


def same_iteration(case: Case, batch: Batch, answer: Answer) -> None:
    """Loss, gradient, memory, lists and label memory are those of the reference, step by step."""
    *answered, form = answer
    same_update(case, batch, form.memory, form.kept)
    # The main labels are the reference's, or where rounding decides such as it may be, too.
    main = reference.pack_labels(same_written_labels(case, batch, form.stored))
    for name, got, expected in zip(
        ("loss", "gradient"), answered, expected_loss(case, batch, main), strict=True
    ):
        close(name, got, expected, absolute=0, relative=1e-5)


def similar_loss(case: Case, batch: Batch, answer: Answer) -> None:
    """For products in tf32: the loss within their rounding; memory and lists are not compared."""
    loss, _ = expected_loss(case, batch, batch.expected_labels)
    close("loss", answer[0], loss, absolute=0, relative=TF32_LOSS)


def least_work(case: Case) -> Work:
    whole = product(case.shape.batch, case.shape.n, case.shape.d)
    return whole._replace(bytes=whole.bytes + least_work_of_labels(case).bytes)


class FastestProduct:
    """In place of an iteration the product f Mᵀ, in the fastest way to write it; on a CPU by numpy too."""

    def __init__(self, case: Case) -> None:
        self.case = case
        ways = [way for name, way in WAYS.items() if name in similarity.names(case.device.type)]
        self.iteration = fastest([way(case) for way in ways], case.device, case.batches[0])


iteration = Operation(
    "iteration",
    "A whole iteration without the backbone",
    same_iteration,
    lambda form, batch: (*form.iteration(batch), form),
    needs=("stored", "product"),
    work=least_work,
)
iteration.ours(Head)
iteration.contender("snnet-streaming", partial(Head, lists=False))
_graphs = {"snnet-graph": "ieee", "snnet-graph-tf32x3": "tf32x3", "snnet-graph-tf32": "tf32"}
for _name, _precision in _graphs.items():
    _gate = similar_loss if _precision == "tf32" else same_iteration
    _make = partial(Head, captured=_precision)
    iteration.contender(_name, _make, gate=_gate, devices=GPU, precision=_precision)
add_forms(iteration, "pytorch-cache", "compile-cache", "compile-static", "pytorch", "loop")
iteration.yardstick("bare-product", lambda case: FastestProduct(case).iteration, lingers=True)


def same_labels_at_the_end(case: Case, batch: Batch, form: Head) -> None:
    """Labels from the lists after all updates are those of direct products with the memory as it is then."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(case.shape.n, generator=generator)[: CHECKED - batch.size].to(case.device)
    for index in torch.cat([batch.index, rows]).split(64):
        expected = reference.mplp(form.memory, index, THRESHOLD, MIN_RANK)
        same_predictions(form.memory, index, form.labels(index)[0], expected)


def least_work_of_all(case: Case) -> Work:
    return Work(STEPS * least_work(case).bytes, STEPS * least_work(case).operations)


def million_shapes(device: str, sizes: Collection[str], dims: Collection[int]) -> list[Shape]:
    """Beside the growth shapes a million images on a GPU."""
    return [shape for shape in shapes(device, sizes) if shape.size == "million"]


def twenty_times(form: Head | FastestProduct, batch: Batch) -> Any:
    for number in range(STEPS):
        form.iteration(form.case.batches[number % len(form.case.batches)])
    return form


twenty = Operation(
    "iterations",
    f"{STEPS} iterations one after the other, without the backbone",
    same_labels_at_the_end,
    twenty_times,
    work=least_work_of_all,
    shapes=million_shapes,
    grows=("snnet", "bare-product"),
)
twenty.contender("snnet", Head)
twenty.contender("bare-product", FastestProduct, gate=None)
OPERATIONS = (iteration, twenty)
