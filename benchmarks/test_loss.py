"""The joint loss of three label sets, forward and backward down to the features.

Both kinds, from the features alone and with s at hand as in an iteration with a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from .bounds import Work, product
from .case import WEIGHTS, Batch, Case
from .equality import close
from .operation import Gate, Operation, Run
from .peers.compiling import compiled, static
from .peers.loss import (
    GivenSimilarity,
    ReferenceLoss,
    dense_l2,
    dense_mmcl,
    gram_l2,
    loss_and_gradient,
)

LOOP_SAMPLES = 16
DENSE = {"mmcl": dense_mmcl, "l2": dense_l2}


def gate(kind: str, relative: float = 1e-5) -> Gate:
    """Value and gradient within ``relative`` of the reference's."""

    def check(case: Case, batch: Batch, answer: tuple[Tensor, Tensor]) -> None:
        value, gradient = reference.fused_mutual_label_loss_with_grad(
            batch.features, case.memory, None, batch.labels, list(WEIGHTS), kind, 5.0, 0.01
        )
        close("loss", answer[0], value, absolute=0, relative=relative)
        close("gradient", answer[1], gradient, absolute=0, relative=relative)

    return check


def work(kind: str, at_hand: bool) -> Callable[[Case], Work]:
    """The product s unless it is at hand, else s read once; ``l2`` also needs the dense product of its gradient."""

    def least(case: Case) -> Work:
        shape = case.shape
        forward = product(shape.batch, shape.n, shape.d)
        backward = Work(0, forward.operations if kind == "l2" else 0, forward.operations)
        if at_hand:
            read = Work(4.0 * shape.batch * shape.n)
            return read + (Work(forward.bytes) + backward if kind == "l2" else Work(0))
        return forward + backward

    return least


def two_products(case: Case) -> Run:
    """What cannot be less for a dense form: s = f Mᵀ, and a gradient of its size times M."""
    gradient = torch.rand(case.shape.batch, case.shape.n, device=case.device)
    return lambda batch: (batch.features @ case.memory.t(), gradient @ case.memory)


def operation(kind: str, at_hand: bool) -> Operation:
    where = "s at hand" if at_hand else "from features"
    return Operation(
        f"{kind}-loss{'-at-hand' if at_hand else ''}",
        f"three-label {kind} loss and gradient, {where}",
        gate(kind),
        inputs=("labels", "dense_labels", *(("similarity",) if at_hand else ())),
        work=work(kind, at_hand),
    )


def add_contenders(measured: Operation, kind: str, at_hand: bool) -> None:
    """Who competes for either kind, with and without s."""

    def similarity(batch: Batch) -> Tensor | None:
        return batch.similarity if at_hand else None

    @measured.ours()
    def ours(case: Case) -> Run:
        return lambda batch: loss_and_gradient(
            lambda f: sk.fused_mutual_label_loss(
                f, case.memory, batch.labels, WEIGHTS, similarity=similarity(batch), kind=kind
            ),
            batch.features,
        )

    if not at_hand:
        loosely = gate(kind, relative=2e-2)
        measured.ours_in_precision("tf32x3", gate=gate(kind, relative=1e-4))(ours)
        measured.ours_in_precision("tf32", gate=loosely)(ours)

    @measured.contender("pytorch")
    def vectorised(case: Case) -> Run:
        """The reference: one selection for all three label sets, the gradient with the value."""
        return lambda batch: loss_and_gradient(
            lambda f: ReferenceLoss.apply(f, case.memory, similarity(batch), batch.labels, kind),
            batch.features,
        )

    def dense_loss(case: Case) -> Callable[[Tensor, Tensor | None, tuple[Tensor, ...]], Tensor]:
        def loss(features: Tensor, s: Tensor | None, labels: tuple[Tensor, ...]) -> Tensor:
            s = features @ case.memory.t() if s is None else GivenSimilarity.apply(features, case.memory, s)
            return DENSE[kind](s, labels)

        return loss

    def on_dense_labels(loss: Callable[..., Tensor]) -> Run:
        return lambda batch: loss_and_gradient(
            lambda f: loss(f, similarity(batch), batch.dense_labels), batch.features
        )

    @measured.contender("pytorch-dense")
    def dense(case: Case) -> Run:
        return on_dense_labels(dense_loss(case))

    @measured.contender("compile")
    def compiled_dense(case: Case) -> Run:
        static(case.memory)
        return on_dense_labels(compiled(dense_loss(case), case.device))

    @measured.contender("loop", samples=LOOP_SAMPLES, once=True)
    def loop(case: Case) -> Run:
        def loss(f: Tensor, batch: Batch) -> Tensor:
            s = (
                f @ case.memory.t()
                if not at_hand
                else GivenSimilarity.apply(f, case.memory, batch.similarity)
            )
            return reference.loop.mutual_label_loss(s, batch.labels, WEIGHTS, kind=kind)

        return lambda batch: loss_and_gradient(lambda f: loss(f, batch), batch.features)

    measured.contender("two-products", gated=False)(two_products)


def gram(case: Case) -> Run:
    """G = MᵀM [d, d] at hand; that a memory update changes G is not timed."""
    matrix = case.memory.t() @ case.memory

    def run(batch: Batch) -> Any:
        return loss_and_gradient(
            lambda f: gram_l2(f, case.memory, matrix, batch.dense_labels), batch.features
        )

    return run


mmcl, mmcl_at_hand = operation("mmcl", False), operation("mmcl", True)
l2, l2_at_hand = operation("l2", False), operation("l2", True)
add_contenders(mmcl, "mmcl", False)
add_contenders(mmcl_at_hand, "mmcl", True)
add_contenders(l2, "l2", False)
add_contenders(l2_at_hand, "l2", True)
l2.contender("pytorch-gram")(gram)


@mmcl.benchmark()
def test_mmcl_from_features(race, contender, benchmark):
    race.report(contender, benchmark)


@mmcl_at_hand.benchmark()
def test_mmcl_with_similarity_at_hand(race, contender, benchmark):
    race.report(contender, benchmark)


@l2.benchmark()
def test_l2_from_features(race, contender, benchmark):
    race.report(contender, benchmark)


@l2_at_hand.benchmark()
def test_l2_with_similarity_at_hand(race, contender, benchmark):
    race.report(contender, benchmark)
