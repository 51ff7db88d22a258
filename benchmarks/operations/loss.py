"""The joint loss of three label sets, forward and backward down to the features.

Both kinds, from the features alone and with s at hand as in an iteration with lists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import WEIGHTS, Batch, Case
from ..equality import close
from ..hardware import Work, product
from ..operation import Operation, Run
from ..peers.compiling import compiled, static
from ..peers.forms import LOOP_SAMPLES
from ..peers.loss import GivenSimilarity, ReferenceLoss, dense_l2, dense_mmcl, gram_l2, loss_and_gradient

DENSE = {"mmcl": dense_mmcl, "l2": dense_l2}


def same_loss(
    case: Case, batch: Batch, answer: tuple[Tensor, Tensor], *, kind: str, relative: float = 1e-5
) -> None:
    """Value and gradient within ``relative`` of the reference's."""
    value, gradient = reference.fused_mutual_label_loss_with_grad(
        batch.features, case.memory, None, batch.labels, list(WEIGHTS), kind, 5.0, 0.01
    )
    close("loss", answer[0], value, absolute=0, relative=relative)
    close("gradient", answer[1], gradient, absolute=0, relative=relative)


def least_work(kind: str, at_hand: bool, case: Case) -> Work:
    """The product s unless it is at hand, else s read once; ``l2`` also needs the dense product of its gradient."""
    shape = case.shape
    one = product(shape.batch, shape.n, shape.d)
    backward = one.operations if kind == "l2" else 0
    if at_hand:
        read = 4.0 * shape.batch * shape.n
        return Work(read + one.bytes, backward, one.operations) if kind == "l2" else Work(read)
    return Work(one.bytes, one.operations + backward, one.products + one.operations)


def two_products(case: Case) -> Run:
    """What cannot be less for a dense form: s = f Mᵀ, and a gradient of its size times M."""
    gradient = torch.rand(case.shape.batch, case.shape.n, device=case.device)
    return lambda batch: (batch.features @ case.memory.t(), gradient @ case.memory)


def operation(kind: str, at_hand: bool) -> Operation:
    """``kind`` with or without s, and who competes."""
    measured = Operation(
        f"{kind}-loss{'-at-hand' if at_hand else ''}",
        f"Three-label `{kind}` loss and gradient, {'similarities at hand' if at_hand else 'from features'}",
        partial(same_loss, kind=kind),
        inputs=("labels", "dense_labels", *(("similarity",) if at_hand else ())),
        work=partial(least_work, kind, at_hand),
    )

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
        measured.ours("tf32x3", gate=partial(same_loss, kind=kind, relative=1e-4))(ours)
        measured.ours("tf32", gate=partial(same_loss, kind=kind, relative=2e-2))(ours)

    @measured.contender("pytorch")
    def vectorised(case: Case) -> Run:
        """The reference: one selection for all three label sets, the gradient with the value."""
        return lambda batch: loss_and_gradient(
            lambda f: ReferenceLoss.apply(f, case.memory, similarity(batch), batch.labels, kind),
            batch.features,
        )

    def dense_loss(case: Case) -> Callable[..., Tensor]:
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
            s = GivenSimilarity.apply(f, case.memory, batch.similarity) if at_hand else f @ case.memory.t()
            return reference.loop.mutual_label_loss(s, batch.labels, WEIGHTS, kind=kind)

        return lambda batch: loss_and_gradient(lambda f: loss(f, batch), batch.features)

    measured.contender("two-products", gated=False)(two_products)
    return measured


LOSSES = [operation(kind, at_hand) for kind in DENSE for at_hand in (False, True)]


@LOSSES[2].contender("pytorch-gram")
def gram(case: Case) -> Run:
    """``l2`` with G = MᵀM [d, d] at hand; that a memory update changes G is not timed."""
    matrix = case.memory.t() @ case.memory

    def run(batch: Batch) -> Any:
        return loss_and_gradient(
            lambda f: gram_l2(f, case.memory, matrix, batch.dense_labels), batch.features
        )

    return run
