"""The mutual label loss (Eq. 8) of up to three label sets, from similarities or from features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, reference
from .operation import operation, set_gradient

# Each returns the loss and its gradient, which the forward pass can compute from the same inputs.
_mutual_label_loss = operation(
    lambda similarity, *_: (similarity.new_empty(()), similarity.new_empty(similarity.shape)),
    name="mutual_label_loss",
)(reference.mutual_label_loss_with_grad)
_fused_mutual_label_loss = operation(
    lambda features, *_: (features.new_empty(()), features.new_empty(features.shape)),
    name="fused_mutual_label_loss",
)(reference.fused_mutual_label_loss_with_grad)


def _save_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """The forward pass has computed the gradient already: keep it."""
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.no_gradients = [
        [None] * len(value) if isinstance(value, list) and isinstance(value[0], Tensor) else None
        for value in inputs[1:]
    ]


def _gradient(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the mutual label loss can be differentiated once only (create_graph=True was asked)"
        )
    (grad,) = ctx.saved_tensors
    return (grad * grad_loss, *ctx.no_gradients)


set_gradient("mutual_label_loss", _save_gradient, _gradient)
set_gradient("fused_mutual_label_loss", _save_gradient, _gradient)


def mutual_label_loss(
    similarity: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    """Joint loss of one to three label sets (Eq. 8): ``Σ_k w_k L(s, y_k) / Σ_k w_k``, averaged over the batch.

    ``kind="l2"`` is Eq. 2/5/7 as printed: ``((similarity - y) ** 2).sum(1).mean()`` for each label set.
    ``kind="mmcl"`` is ``delta * mean((1 - s)²)`` over the positives plus ``mean((1 + s)²)`` over the
    ``max(1, floor(hard_negative_ratio * negatives))`` negatives with the largest s (ties by lower index); a
    term without entries is 0. An empty batch gives 0. Positives are pulled to 1, negatives to -1 (``mmcl``) or 0
    (``l2``), so similarities should be cosines in [-1, 1], which is not checked.
    Differentiable in ``similarity``, once, in reverse mode; a forward-mode tangent raises NotImplementedError.

    Args:
        similarity: [B, n], any floating type, converted to float32.
        labels: one to three packed label tensors, uint8 [B, label_bytes(n)].
        weights: one number per label set, none negative, not all 0.
    """
    kind, delta, hard_negative_ratio = checks.check_loss_options(kind, delta, hard_negative_ratio)
    similarity = checks.check_matrix("similarity", similarity, "B", "n")
    similarity = checks.check_rows("similarity", similarity, *similarity.shape)
    labels, weights = checks.check_label_sets(labels, weights, *similarity.shape)
    checks.check_same_device(similarity=similarity, **{f"labels[{k}]": y for k, y in enumerate(labels)})
    checks.check_no_transform("similarity", similarity)
    return _mutual_label_loss(similarity, labels, weights, kind, delta, hard_negative_ratio)[0]


def fused_mutual_label_loss(
    features: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    similarity: Tensor | None = None,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    """The same value as ``mutual_label_loss(memory_similarity(features, memory), ...)``, from the features.

    Differentiable in ``features``, once, in reverse mode; a forward-mode tangent raises NotImplementedError. For the
    backward pass a tensor [B, d] is saved, not [B, n]. Rows of features and memory should have length 1, which is not
    checked.

    Args:
        features: [B, d], any floating type and strides.
        memory: float32 [n, d], contiguous.
        labels, weights, kind, delta, hard_negative_ratio: as in :func:`mutual_label_loss`.
        similarity: ``memory_similarity(features, memory)`` [B, n], if already computed; no gradient flows into it.
    """
    kind, delta, hard_negative_ratio = checks.check_loss_options(kind, delta, hard_negative_ratio)
    memory = checks.check_memory("memory", memory)
    features = checks.check_features("features", features, memory.shape[1])
    shape = features.shape[0], memory.shape[0]
    labels, weights = checks.check_label_sets(labels, weights, *shape)
    if similarity is not None:
        similarity = checks.check_rows("similarity", similarity, *shape).detach()
    checks.check_same_device(
        features=features,
        memory=memory,
        similarity=similarity,
        **{f"labels[{k}]": y for k, y in enumerate(labels)},
    )
    checks.check_no_transform("features", features)
    return _fused_mutual_label_loss(
        features, memory, similarity, labels, weights, kind, delta, hard_negative_ratio
    )[0]
