"""The joint loss of three label sets, forward and backward down to the features.

Both kinds, from the features alone and with s at hand as in an iteration with lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import DELTA, RATIO, WEIGHTS, Batch, Case
from ..equality import close_losses
from ..operation import Operation
from ..pytorch import PRODUCTS, compiled, dense_mmcl, fastest_product, static


def dense_l2(similarity: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """``l2`` as it is printed: one squared difference a label set."""
    total = similarity.new_zeros(())
    for label, weight in zip(labels, WEIGHTS, strict=True):
        total = total + weight * (similarity - label.to(similarity.dtype)).square().sum(1).mean()
    return total / sum(WEIGHTS)


def gram_l2(features: Tensor, memory: Tensor, gram: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """``l2`` without similarities: ‖M f‖² = fᵀ(MᵀM)f with G = MᵀM [d, d] at hand; only the positives are gathered."""
    pulled = torch.zeros_like(features)
    count = 0.0
    for label, weight in zip(labels, WEIGHTS, strict=True):
        row, column = label.nonzero(as_tuple=True)
        pulled = pulled.index_add(0, row, memory[column], alpha=weight / sum(WEIGHTS))
        count += weight / sum(WEIGHTS) * row.numel()
    return ((features @ gram * features).sum() - 2 * (features * pulled).sum() + count) / features.shape[0]


DENSE = {"mmcl": dense_mmcl, "l2": dense_l2}


class ReferenceLoss(torch.autograd.Function):
    """The vectorised reference: one selection for all three label sets, the gradient with the value, from bits."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, memory: Tensor, s: Tensor, labels: Any, kind: str) -> Tensor:
        loss, ctx.gradient = reference.fused_mutual_label_loss_with_grad(
            features, memory, s, labels, list(WEIGHTS), kind, DELTA, RATIO
        )
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * grad, None, None, None, None


class GivenSimilarity(torch.autograd.Function):
    """s as a function of the features whose value is at hand: only its backward product is made."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, memory: Tensor, similarity: Tensor) -> Tensor:
        ctx.save_for_backward(memory)
        return similarity.view_as(similarity)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.saved_tensors[0], None, None


def loss_and_gradient(loss: Callable[[Tensor, Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The value of ``loss(features, batch)`` and its gradient [B, d]."""
    features = batch.features.detach().clone().requires_grad_()
    value = loss(features, batch)
    value.backward()
    return value.detach(), features.grad


def same_loss(
    case: Case, batch: Batch, answer: tuple[Tensor, Tensor], *, kind: str, relative: float = 1e-5
) -> None:
    """Value and gradient within ``relative`` of the reference's."""
    expected = reference.fused_mutual_label_loss_with_grad(
        batch.features, case.memory, None, batch.labels, list(WEIGHTS), kind, DELTA, RATIO
    )
    close_losses(answer, expected, relative)


def two_products(case: Case) -> Any:
    """What cannot be less for a dense form: s = f Mᵀ, and a gradient of its size times M."""
    gradient = torch.rand(case.shape.batch, case.shape.n, device=case.device)
    forward = fastest_product(case.batches[0].features, case.memory)
    backward = fastest_product(gradient, case.memory.t())
    return lambda batch: (forward(batch.features, case.memory), backward(gradient, case.memory.t()))


def operation(kind: str, at_hand: bool) -> Operation:
    """``kind`` with or without s, and who competes: functions of the case that give ``loss(features, batch)``."""
    gate = partial(same_loss, kind=kind)
    measured = Operation(
        f"{kind}-loss{'-at-hand' if at_hand else ''}",
        f"Three-label `{kind}` loss and gradient, {'similarities at hand' if at_hand else 'from features'}",
        gate,
        loss_and_gradient,
        inputs=("labels", "dense_labels", *(("similarity",) if at_hand else ())),
    )

    def given(batch: Batch) -> Tensor | None:
        return batch.similarity if at_hand else None

    def ours(case: Case) -> Any:
        return lambda f, batch: sk.fused_mutual_label_loss(
            f, case.memory, batch.labels, WEIGHTS, similarity=given(batch), kind=kind
        )

    measured.contender("snnet", ours)
    if not at_hand:
        measured.rounded(ours, tf32x3=partial(gate, relative=1e-4), tf32=partial(gate, relative=2e-2))

    def similarity_of(case: Case, product: Any = None) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Of the features, and of s where it is at hand, else by the fastest product or the given one."""
        if at_hand:
            return lambda f, s: GivenSimilarity.apply(f, case.memory, s)
        product = product or fastest_product(case.batches[0].features, case.memory)
        return lambda f, s: product(f, case.memory)

    @measured.contender("pytorch")
    def vectorised(case: Case) -> Any:
        similarity = similarity_of(case)

        def loss(f: Tensor, batch: Batch) -> Tensor:
            s = similarity(f.detach(), given(batch))
            return ReferenceLoss.apply(f, case.memory, s, batch.labels, kind)

        return loss

    @measured.contender("pytorch-dense")
    def dense(case: Case, compiling: Callable[..., Any] = lambda loss, device: loss) -> Any:
        similarity = similarity_of(case)
        loss = compiling(lambda f, s, labels: DENSE[kind](similarity(f, s), labels), case.device)
        return lambda f, batch: loss(f, given(batch), batch.dense_labels)

    @measured.contender("compile")
    def compiled_dense(case: Case) -> Any:
        static(case.memory)
        return dense(case, compiled)

    @measured.contender("loop", once=True)
    def loop(case: Case) -> Any:
        similarity = similarity_of(case, PRODUCTS["pytorch"])
        return lambda f, batch: reference.loop.mutual_label_loss(
            similarity(f, given(batch)), batch.labels, WEIGHTS, kind=kind
        )

    if not at_hand:
        measured.yardstick("two-products", two_products)
    return measured


MEASURED = {(kind, at_hand): operation(kind, at_hand) for kind in DENSE for at_hand in (False, True)}
OPERATIONS = tuple(MEASURED.values())


@MEASURED["l2", False].contender("pytorch-gram")
def gram(case: Case) -> Any:
    """``l2`` with G = MᵀM [d, d] at hand; that a memory update changes G is not timed."""
    matrix = case.memory.t() @ case.memory
    return lambda f, batch: gram_l2(f, case.memory, matrix, batch.dense_labels)
