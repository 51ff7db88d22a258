"""The three classes of the MMCL authors' training code, with their signatures and results.

A trainer written for those classes runs on this package by changing its imports. Where the original returns
NaN (fewer negatives than one hundredth of the images make one hard negative) these return a number.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from .. import ops
from .layer import MemoryLayer

EPOCHS = 60  # the divisor of the memory momentum in the original, whatever the length of the run


class MPLP:
    """Label prediction with threshold ``t``."""

    def __init__(self, t: float = 0.6) -> None:
        self.t = t

    def predict(self, memory: Tensor, targets: Tensor) -> Tensor:
        """Multi-labels of the images ``targets`` int64 [B] from ``memory`` [n, d]: float32 [B, n] in {0, 1}."""
        memory = ops.checks.check_matrix("memory", memory)
        labels = ops.mplp(memory.detach().float().contiguous(), targets, self.t)
        return ops.unpack_labels(labels, memory.shape[0]).float()


class MMCL(nn.Module):
    """Memory-based multi-label classification loss of logits [B, n]."""

    def __init__(self, delta: float = 5.0, r: float = 0.01) -> None:
        super().__init__()
        self.delta = delta
        self.r = r

    def forward(self, inputs: Tensor, targets: Tensor, is_vec: bool = False) -> Tensor:
        """The loss [] of ``inputs`` [B, n]; ``targets`` are image numbers [B], or labels [B, n] with is_vec."""
        if is_vec:
            if targets.shape != inputs.shape:
                raise ValueError(
                    f"targets must have the shape of inputs {tuple(inputs.shape)}, got {tuple(targets.shape)}"
                )
            labels = targets > 0
        else:
            targets = ops.checks.check_index("targets", targets, inputs.shape[1], inputs.shape[0])
            labels = torch.zeros(inputs.shape, dtype=torch.bool, device=inputs.device)
            labels.scatter_(1, targets[:, None], True)
        return ops.mutual_label_loss(
            inputs, [ops.pack_labels(labels)], [1.0], delta=self.delta, hard_negative_ratio=self.r
        )


class Memory(nn.Module):
    """Exemplar memory ``mem`` [num_classes, num_features], zeros at first, updated during backward."""

    mem: Tensor

    def __init__(self, num_features: int, num_classes: int, alpha: float = 0.01) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.alpha = alpha
        self.mem = nn.Parameter(
            torch.zeros(num_classes, num_features, dtype=torch.float32), requires_grad=False
        )

    def forward(self, inputs: Tensor, targets: Tensor, epoch: float | None = None) -> Tensor:
        """Logits [B, num_classes] of ``inputs`` [B, num_features]; α is 0.5·epoch/60 where epoch is given."""
        if epoch is not None and epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        targets = ops.checks.check_index("targets", targets, self.num_classes, inputs.shape[0])
        alpha = self.alpha if epoch is None else min(0.5 * epoch / EPOCHS, 1.0)
        update = functools.partial(ops.update_memory_, momentum=alpha)
        return MemoryLayer.apply(inputs, targets, self.mem.data, update)
