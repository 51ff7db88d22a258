"""The joint loss of up to three label sets as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import checks, ops


class MutualLabelLoss(nn.Module):
    """Joint loss of one to three label sets as a module; see :func:`snnet_kernels.mutual_label_loss`.

    Args:
        weights: λ of each label set: main, symmetric, neighbour (Eq. 8).
        kind: ``"mmcl"`` or ``"l2"``.
        delta: weight of the positives (``"mmcl"``).
        hard_negative_ratio: share of the negatives that are hard (``"mmcl"``).
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 0.8, 0.6),
        *,
        kind: str = "mmcl",
        delta: float = 5.0,
        hard_negative_ratio: float = 0.01,
    ) -> None:
        super().__init__()
        options = checks.check_loss_options(kind, delta, hard_negative_ratio)
        self.weights = tuple(checks.check_weights(weights))
        self.kind, self.delta, self.hard_negative_ratio = options

    def forward(self, similarity: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """The loss [] of ``similarity`` [B, n], for one packed label set per weight."""
        return ops.mutual_label_loss(similarity, labels, self.weights, **self.options())

    def options(self) -> dict[str, Any]:
        return {"kind": self.kind, "delta": self.delta, "hard_negative_ratio": self.hard_negative_ratio}

    def extra_repr(self) -> str:
        return f"weights={self.weights}, " + ", ".join(f"{k}={v!r}" for k, v in self.options().items())
