"""The layer that memories of public code share: they learn in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops


class MemoryLayer(torch.autograd.Function):
    """Logits of the memory as it is; the memory takes the features up in the backward pass.

    ``update(memory, targets, inputs)`` writes the memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        targets: Tensor,
        memory: Tensor,
        update: Callable[[Tensor, Tensor, Tensor], None],
    ) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        ctx.memory, ctx.update = memory, update
        return ops.memory_similarity(inputs, memory)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, targets = ctx.saved_tensors
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.ops.snnet.memory_similarity_backward.default(grad.contiguous(), ctx.memory)
            gradient = gradient.to(inputs.dtype)
        ctx.update(ctx.memory, targets, inputs)
        return gradient, None, None, None
