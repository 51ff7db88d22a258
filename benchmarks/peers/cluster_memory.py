"""A memory of cluster centres as clustering trainers write it: a loop over the batch in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LoopedMemory(torch.autograd.Function):
    """Logits of the centres; in the backward pass each entry in turn moves its centre."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, targets: Tensor, centres: Tensor, momentum: float) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        ctx.centres, ctx.momentum = centres, momentum
        return inputs @ centres.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, targets = ctx.saved_tensors
        before = gradient @ ctx.centres
        for row, target in zip(inputs, targets, strict=True):
            ctx.centres[target] = ctx.momentum * ctx.centres[target] + (1 - ctx.momentum) * row
            ctx.centres[target] /= ctx.centres[target].norm()
        return before, None, None, None


class LoopedHardMemory(LoopedMemory):
    """The same with the least similar entry of each centre alone."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, targets = ctx.saved_tensors
        before = gradient @ ctx.centres
        members: dict[int, list[Tensor]] = {}
        for row, target in zip(inputs, targets.tolist(), strict=True):
            members.setdefault(target, []).append(row)
        for target, rows in members.items():
            similarity = [(row @ ctx.centres[target]).item() for row in rows]
            hardest = rows[similarity.index(min(similarity))]
            ctx.centres[target] = ctx.momentum * ctx.centres[target] + (1 - ctx.momentum) * hardest
            ctx.centres[target] /= ctx.centres[target].norm()
        return before, None, None, None
