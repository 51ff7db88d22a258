"""Batch normalisation of equal parts of a batch apart, as several processes do it that share the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from snnet.errors import UserError


class GroupedBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d`` or ``nn.BatchNorm2d`` that in training normalises ``groups`` parts of a batch apart.

    Each consecutive part of B / groups samples has a mean and a variance of its own. The running statistics are those
    of the first part, as ``DistributedDataParallel`` keeps those of rank 0. In ``eval()`` it is the layer it was made
    of, with which it shares parameters and buffers under the same names.

    Raises :class:`~snnet.errors.UserError` for a batch that has no such parts.
    """

    def __init__(self, layer: _BatchNorm, groups: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in layer.__dict__.items() if name[0] != "_"})
        for kind in ("_parameters", "_buffers"):
            getattr(self, kind).update(getattr(layer, kind))
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if len(input) % self.groups != 0:
            raise UserError(
                f"a batch of {len(input)} has no {self.groups} equal parts: --batch-size must be a multiple of "
                "--bn-groups"
            )
        first, *others = input.chunk(self.groups)
        parts = [super().forward(first)]  # which writes the running statistics
        parts += [
            F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps) for part in others
        ]
        return torch.cat(parts)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input must be [B, C, ...], got {tuple(input.shape)}")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def group_batch_norms(model: nn.Module, groups: int) -> None:
    """Put a :class:`GroupedBatchNorm` in the place of each batch normalisation of ``model``; with 1 group, none."""
    if groups == 1:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, GroupedBatchNorm(child, groups))
