"""Similarities to the exemplar memory."""

from __future__ import annotations

from torch import Tensor

from ..precision import matmul


def memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    """s = f Mᵀ [B, n] of features [B, d] and memory [n, d] (Eq. 1)."""
    return matmul(features, memory.t())


def memory_similarity_backward(grad: Tensor, memory: Tensor) -> Tensor:
    """∂L/∂f [B, d] of ∂L/∂s [B, n]."""
    return matmul(grad, memory)


def similarity_rows(memory: Tensor, index: Tensor, cache: Tensor | None) -> Tensor:
    """S[index] [B, n], from the cache or by a product."""
    return cache[index] if cache is not None else matmul(memory[index], memory.t())
