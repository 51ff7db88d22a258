"""The three-label loss in plain PyTorch, on dense labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snnet_kernels import reference

from ..case import WEIGHTS

DELTA, RATIO = 5.0, 0.01


def dense_mmcl(similarity: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """``mmcl`` of ``similarity`` [B, n] for bool labels [B, n]: masks, and one topk a label set; all shapes static."""
    n = similarity.shape[1]
    widest = max(1, int(RATIO * n))
    total = similarity.new_zeros(())
    for label, weight in zip(labels, WEIGHTS, strict=True):
        positives = label.sum(1)
        positive_part = ((1 - similarity).square() * label).sum(1) / positives.clamp_min(1)
        hard = (RATIO * (n - positives).double()).floor().clamp_min(1)
        hardest = similarity.masked_fill(label, -2.0).topk(widest).values  # -2: below every similarity
        taken = torch.arange(widest, device=hardest.device) < hard[:, None]
        negative_part = ((1 + hardest).square() * taken).sum(1) / hard.to(similarity.dtype)
        total = total + weight * (DELTA * positive_part + negative_part).mean()
    return total / sum(WEIGHTS)


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


class ReferenceLoss(torch.autograd.Function):
    """The vectorised reference: loss and gradient in the forward pass, from bits."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        memory: Tensor,
        similarity: Tensor | None,
        labels: Sequence[Tensor],
        kind: str,
    ) -> Tensor:
        loss, grad = reference.fused_mutual_label_loss_with_grad(
            features, memory, similarity, labels, list(WEIGHTS), kind, DELTA, RATIO
        )
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grad, None, None, None, None


class GivenSimilarity(torch.autograd.Function):
    """s as a function of the features whose value is at hand: only its backward product is made."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, memory: Tensor, similarity: Tensor) -> Tensor:
        ctx.save_for_backward(memory)
        return similarity.view_as(similarity)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.saved_tensors[0], None, None


def loss_and_gradient(loss: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    """The value of ``loss(features)`` and its gradient [B, d]."""
    features = features.detach().clone().requires_grad_()
    value = loss(features)
    value.backward()
    return value.detach(), features.grad
