"""Similarities to the exemplar memory: the product, the cached matrix, the nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import matmul
from .selection import ordered_topk


def memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    """s = f Mᵀ [B, n] of features [B, d] and memory [n, d] (Eq. 1)."""
    return matmul(features, memory.t())


def memory_similarity_backward(grad: Tensor, memory: Tensor) -> Tensor:
    """∂L/∂f [B, d] of ∂L/∂s [B, n]."""
    return matmul(grad, memory)


def build_similarity_cache(memory: Tensor) -> Tensor:
    """S = M Mᵀ [n, n]."""
    return matmul(memory, memory.t())


def similarity_rows(memory: Tensor, index: Tensor, cache: Tensor | None) -> Tensor:
    """S[index] [B, n], from the cache or by a product."""
    return cache[index] if cache is not None else matmul(memory[index], memory.t())


def nearest_neighbors(
    memory: Tensor,
    index: Tensor,
    k: int = 1,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most similar other images: (index int64 [B, k], similarity [B, k]), falling, ties by lower index."""
    n = memory.shape[0]
    rows = query_rows if query_rows is not None else similarity_rows(memory, index, cache)
    place = torch.arange(max(n - 1, 0), device=index.device)
    columns = place + (place >= index[:, None])  # all but the row's own
    others = min(k, len(place))
    similarity, places = ordered_topk(rows.gather(1, columns), others)
    neighbors = columns.gather(1, places)
    missing = (index.shape[0], k - others)
    return (
        torch.cat([neighbors, neighbors.new_full(missing, -1)], dim=1),
        torch.cat([similarity, similarity.new_full(missing, -torch.inf)], dim=1),
    )
