"""What the memories of public code share: their arguments, and an update in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..derived import row_checksums
from ..memory_module import MemoryModule
from ..tracing import has_values


class SampleMemory(MemoryModule):
    """A memory ``features`` [rows, num_features] of ``num_samples`` images or clusters, zeros until they are assigned.

    The arguments are attributes. ``temp`` and ``momentum`` may be changed later: a forward pass checks them.

    Raises:
        TypeError, ValueError: unless ``num_features`` is an integer of at least 1, ``num_samples`` an integer of at
            least 0, ``temp`` a finite number above 0, and ``momentum`` a number in [0, 1].
    """

    features: Tensor

    def __init__(
        self, num_features: int, num_samples: int, temp: float, momentum: float, rows_of_each: int = 1
    ) -> None:
        super().__init__()
        self.num_features = checks.check_count("num_features", num_features)
        self.num_samples = checks.check_count("num_samples", num_samples, lowest=0)
        self.momentum, self.temp = check_settings(momentum, temp)
        rows = rows_of_each * self.num_samples
        self.register_buffer("features", torch.zeros(rows, self.num_features, dtype=torch.float32))


def check_settings(momentum: object, temp: object) -> tuple[float, float]:
    """A momentum in [0, 1] and a temperature above 0."""
    share, temperature = checks.check_share("momentum", momentum), checks.check_finite("temp", temp)
    if temperature <= 0:
        raise ValueError(f"temp must be above 0, got {temperature}")
    return share, temperature


def check_inputs(inputs: object, memory: Tensor) -> Tensor:
    """Inputs [B, d] of any floating type, d that of the ``memory`` [n, d]."""
    tensor = checks.check_matrix("inputs", inputs, "B", "d")
    checks.check_floating("inputs", tensor)
    checks.check_shape("inputs", tensor, "B", memory.shape[-1])
    return tensor


class MemoryLayer(torch.autograd.Function):
    """Logits of the inputs with the current memory; the backward pass updates the memory with the inputs.

    ``update(memory, targets, inputs, similarity)`` writes the memory. ``similarity`` are the logits if
    ``reads_similarity`` asks for them and they were not changed in place, else None. Outside of traced code checksums
    tell this: writes through ``.data`` leave no other trace, and ``torch.use_deterministic_algorithms`` has new tensors
    written once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        targets: Tensor,
        memory: Tensor,
        update: Callable[[Tensor, Tensor, Tensor, Tensor | None], None],
        reads_similarity: bool = False,
    ) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        ctx.memory, ctx.update = memory, update
        logits = ops.memory_similarity(inputs, memory)
        ctx.logits = logits.detach() if reads_similarity else None
        ctx.sums = row_checksums(ctx.logits) if reads_similarity and has_values(logits) else None
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        inputs, targets = ctx.saved_tensors
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.ops.snnet.memory_similarity_backward.default(grad.contiguous(), ctx.memory)
            gradient = gradient.to(inputs.dtype)
        logits, sums = ctx.logits, ctx.sums
        if logits is not None:
            unchanged = logits._version == 0 if sums is None else torch.equal(sums, row_checksums(logits))
            logits = logits if unchanged else None
        ctx.update(ctx.memory, targets, inputs, logits)
        return gradient, None, None, None, None
