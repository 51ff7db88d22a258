"""Batch normalisation of equal parts of a batch separately, as several processes that share the batch do it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnet.errors import UserError


class GroupedBatchNorm(_BatchNorm):
    """A batch normalisation that normalises ``groups`` equal parts of a training batch separately.

    Each consecutive part of B / groups samples has a mean and a variance of its own. The running statistics are those
    of the first part, as ``DistributedDataParallel`` keeps those of rank 0. In ``eval()`` it is the layer it was made
    of. What that layer does besides, as timm's do the activation, it does with each part.

    Raises :class:`~snnet.errors.UserError` for a batch that has no such parts.
    """

    groups: int

    def forward(self, input: Tensor) -> Tensor:
        of_layer: Callable[[Tensor], Tensor] = super().forward
        if not self.training:
            return of_layer(input)
        if len(input) % self.groups != 0:
            raise UserError(
                f"a batch of {len(input)} has no {self.groups} equal parts: --batch-size must be a multiple of "
                "--bn-groups"
            )
        first, *others = input.chunk(self.groups)
        parts = [of_layer(first)]  # which writes the running statistics
        tracked, self.track_running_stats = self.track_running_stats, False
        try:
            parts += [of_layer(part) for part in others]
        finally:
            self.track_running_stats = tracked
        return torch.cat(parts)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


_GROUPED: dict[type[_BatchNorm], type[GroupedBatchNorm]] = {}  # of each kind of layer


def group_batch_norms(model: nn.Module, groups: int) -> None:
    """Make each batch normalisation of ``model`` a :class:`GroupedBatchNorm` of its kind; with 1 group, none."""
    if groups == 1:
        return
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            kind = type(layer)
            if kind not in _GROUPED:
                _GROUPED[kind] = type(f"Grouped{kind.__name__}", (GroupedBatchNorm, kind), {})
            layer.__class__ = _GROUPED[kind]
            layer.__dict__["groups"] = groups
