"""Twenty whole iterations one after the other, without the backbone.

What one step leaves is what the next one reads; labels of 200 rows are checked at the end. At the growth shapes:
a million images, with ``--size million``, takes half an hour on two cores until the lists are built.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD, Batch, Case
from ..equality import same_predictions
from ..hardware import Work
from ..operation import Operation, Run
from ..ours import Head
from ..shapes import Shape, shapes
from .iteration import fastest_product, least_work
from .label_step import lists_and_p

STEPS, CHECKED = 20, 200


def same_labels_at_the_end(case: Case, batch: Batch, form: Head) -> None:
    """Labels from the lists after all updates are those of direct products with the memory as it is then."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(case.shape.n, generator=generator)[: CHECKED - batch.size].to(case.device)
    for index in torch.cat([batch.index, rows]).split(64):
        got, _ = form.labels(index)
        expected = reference.mplp(form.memory, index, THRESHOLD, MIN_RANK)
        same_predictions(form.memory, index, got, expected)


def least_work_of_all(case: Case) -> Work:
    return Work(STEPS * least_work(case).bytes, STEPS * least_work(case).operations)


def own_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    """Beside the growth shapes a million images on a GPU."""
    return [shape for shape in shapes(device, sizes) if shape.size == "million"]


twenty = Operation(
    "iterations",
    f"{STEPS} iterations one after the other, without the backbone",
    same_labels_at_the_end,
    work=least_work_of_all,
    own_shapes=own_shapes,
    grows=("snnet", "bare-product"),
)


@twenty.contender("snnet", keeps=lists_and_p)
def ours(case: Case) -> Run:
    head = Head(case)

    def run(first: Batch) -> Head:
        for step in range(STEPS):
            head.iteration(case.batches[step % len(case.batches)])
        return head

    return run


@twenty.contender("bare-product", gated=False)
def products(case: Case) -> Run:
    run = fastest_product(case)
    return lambda first: [run(case.batches[step % len(case.batches)]) for step in range(STEPS)]
