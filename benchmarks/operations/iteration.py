"""Iterations without the backbone: their label work with s at hand, a whole one, and twenty of them.

The label work is all but the product s and the loss: the three label sets, and the update of P, memory and lists. A
whole iteration has the product and the loss, too: loss, gradient and all that is written are compared. The yardstick is
the bare product of features and memory, in the faster of two ways to write it.

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

from ..case import DELTA, MIN_RANK, RATIO, THRESHOLD, WEIGHTS, Batch, Case
from ..equality import (
    as_bool,
    close,
    close_losses,
    same,
    same_labels,
    same_neighbors,
    same_predictions,
    same_update,
)
from ..forms import FORMS, Form, add_forms
from ..operation import GPU, Operation
from ..ours import Head, Ours
from ..pytorch import fastest_product
from ..shapes import Shape, shapes

TF32_LOSS = 1e-2  # of a loss with products in tf32, relative
STEPS, CHECKED = 20, 200
# Loss, gradient, and the form that ran: its memory, lists and P are compared.
Answer = tuple[Tensor, Tensor, Form]


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


label_step = Operation(
    "label-step",
    "The three label sets, and the update of P, memory and lists",
    same_step,
    lambda form, batch: (*form.step(batch), form),
    inputs=("similarity",),
    needs=("stored", "product"),
    grows=("snnet", "snnet-streaming", *FORMS),
)
label_step.contender("snnet", Ours)
label_step.contender("snnet-streaming", partial(Ours, lists=False))
add_forms(label_step, *FORMS)


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
    close_losses(answered, expected_loss(case, batch, main))


def similar_loss(case: Case, batch: Batch, answer: Answer) -> None:
    """For products in tf32: the loss within their rounding; memory and lists are not compared."""
    loss, _ = expected_loss(case, batch, batch.expected_labels)
    close("loss", answer[0], loss, absolute=0, relative=TF32_LOSS)


class BareProduct:
    """In place of an iteration the product f Mᵀ, in the faster of two ways to write it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.product = fastest_product(case.batches[0].features, case.memory)

    def iteration(self, batch: Batch) -> Tensor:
        return self.product(batch.features, self.case.memory)


iteration = Operation(
    "iteration",
    "A whole iteration without the backbone",
    same_iteration,
    lambda form, batch: (*form.iteration(batch), form),
    needs=("stored", "product"),
)
iteration.contender("snnet", Head)
iteration.contender("snnet-streaming", partial(Head, lists=False))
_graphs = {"snnet-graph": "ieee", "snnet-graph-tf32x3": "tf32x3", "snnet-graph-tf32": "tf32"}
for _name, _precision in _graphs.items():
    _gate = similar_loss if _precision == "tf32" else same_iteration
    _make = partial(Head, captured=_precision)
    iteration.contender(_name, _make, gate=_gate, devices=GPU, precision=_precision)
add_forms(iteration, "pytorch-cache", "compile-cache", "compile-static", "pytorch", "loop")
iteration.yardstick("bare-product", lambda case: BareProduct(case).iteration)


def same_labels_at_the_end(case: Case, batch: Batch, form: Head) -> None:
    """Labels from the lists after all updates are those of direct products with the memory as it is then."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(case.shape.n, generator=generator)[: max(0, CHECKED - batch.size)]
    for index in torch.cat([batch.index, rows.to(case.device)])[:CHECKED].split(64):
        expected = reference.mplp(form.memory, index, THRESHOLD, MIN_RANK)
        same_predictions(form.memory, index, form.labels(index)[0], expected)


def million_shapes(device: str, sizes: Collection[str], dims: Collection[int]) -> list[Shape]:
    """On a GPU a million images; the growth shapes come from ``grows``."""
    return [shape for shape in shapes(device, sizes) if shape.size == "million"]


def twenty_times(form: Head | BareProduct, batch: Batch) -> Any:
    for number in range(STEPS):
        form.iteration(form.case.batches[number % len(form.case.batches)])
    return form


twenty = Operation(
    "iterations",
    f"{STEPS} iterations one after the other, without the backbone",
    same_labels_at_the_end,
    twenty_times,
    shapes=million_shapes,
    grows=("snnet", "bare-product"),
)
twenty.contender("snnet", Head)
twenty.contender("bare-product", BareProduct, gate=None)
OPERATIONS = (label_step, iteration, twenty)
