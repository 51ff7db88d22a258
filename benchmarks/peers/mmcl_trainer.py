"""The MMCL authors' three classes in plain PyTorch, one sample at a time, with the results of their code."""

from __future__ import annotations

import torch
from torch import Tensor

from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD
from .cluster_memory import LoopedMemory


class LoopedTrainer:
    """What a step of their trainer does with a memory: logits, labels of a copy of it, loss, and update in backward."""

    def __init__(self, memory: Tensor, momentum: float) -> None:
        self.memory, self.momentum = memory, momentum

    def step(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The labels [B, n] of ``index`` and the loss of ``features`` [B, d], whose gradient is filled."""
        logits = LoopedMemory.apply(features, index, self.memory, self.momentum)
        labels = reference.loop.mplp(self.memory.detach().clone(), index, THRESHOLD, MIN_RANK)
        loss = reference.loop.mutual_label_loss(logits, [labels], [1.0])
        loss.backward()
        return reference.unpack_labels(labels, len(self.memory)).to(torch.float32), loss.detach()
