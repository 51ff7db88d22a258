"""The layer that memories of public code share: they learn in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops


class MemoryLayer(torch.autograd.Function):
    """Logits of the memory as it is; the memory takes the features up in the backward pass.

    ``update(memory, targets, inputs, similarity)`` writes the memory; the last are the logits, or None where something
    has changed them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        targets: Tensor,
        memory: Tensor,
        update: Callable[[Tensor, Tensor, Tensor, Tensor | None], None],
    ) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        ctx.memory, ctx.update = memory, update
        logits = ops.memory_similarity(inputs, memory)
        ctx.logits = logits.detach()
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, targets = ctx.saved_tensors
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.ops.snnet.memory_similarity_backward.default(grad.contiguous(), ctx.memory)
            gradient = gradient.to(inputs.dtype)
        as_they_were = ctx.logits if ctx.logits._version == 0 else None
        ctx.update(ctx.memory, targets, inputs, as_they_were)
        return gradient, None, None, None
