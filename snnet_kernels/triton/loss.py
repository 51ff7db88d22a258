"""The mutual label loss from features: which kernel serves which kind."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..precision import get_matmul_precision
from .hard_negative_loss import hard_negative_loss
from .square_loss import square_loss


def fused_mutual_label_loss(
    features: Tensor,
    memory: Tensor,
    similarity: Tensor | None,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    kind: str,
    delta: float,
    hard_negative_ratio: float,
) -> tuple[Tensor, Tensor]:
    """(loss [], dL/df [B, d]) as :func:`snnet_kernels.fused_mutual_label_loss` defines them; makes all similarities."""
    precision = get_matmul_precision()
    if kind == "l2":
        return square_loss(features, memory, labels, weights, precision)
    return hard_negative_loss(features, memory, labels, weights, delta, hard_negative_ratio, precision)
