"""The similarity of features to the exemplar memory, and its derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, reference
from ..precision import matmul
from .operation import operation, set_gradient


@operation(lambda features, memory: features.new_empty(features.shape[0], memory.shape[0]))
def _memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    return reference.memory_similarity(features, memory)


@operation(lambda grad, memory: grad.new_empty(grad.shape[0], memory.shape[1]))
def _memory_similarity_backward(grad: Tensor, memory: Tensor) -> Tensor:
    return reference.memory_similarity_backward(grad, memory)


def _save_memory(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (memory,) = ctx.saved_tensors
    return torch.ops.snnet.memory_similarity_backward.default(grad.contiguous(), memory), None


def _second_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (memory,) = ctx.saved_tensors
    return torch.ops.snnet.memory_similarity.default(grad.contiguous(), memory), None


set_gradient("memory_similarity", _save_memory, _gradient)
set_gradient("memory_similarity_backward", _save_memory, _second_gradient)


def memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    """Similarity of live features to the exemplar memory (Eq. 1): s = f Mᵀ [B, n].

    Equals ``features.float() @ memory.t()`` in true float32. (A plain ``@`` would round the inputs under autocast, or
    with torch's TF32 switched on.) On CUDA :func:`snnet_kernels.set_matmul_precision` sets the precision.
    Differentiable in ``features``, in reverse mode. If few entries of a gradient are not 0, its product on a CPU reads
    only their memory rows. Rows may have any length; for rows of length 1 the result is the cosine similarity.

    Args:
        features: [B, d], any floating type and strides.
        memory: float32 [n, d], contiguous.
    """
    memory = checks.check_memory("memory", memory)
    features = checks.check_features("features", features, memory.shape[1])
    checks.check_same_device(features=features, memory=memory)
    checks.check_no_transform("features", features)
    return _memory_similarity(features, memory)


def float32_similarity(features: Tensor, memory: Tensor) -> Tensor:
    """:func:`memory_similarity` [B, n] in float32, whatever precision is set; without a gradient."""
    if features.device.type == "cpu":
        return memory_similarity(features.detach(), memory)
    return matmul(features.detach().float(), memory.t())
