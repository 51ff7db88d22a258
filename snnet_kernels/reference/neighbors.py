"""The nearest neighbours of images in the exemplar memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .selection import ordered_topk
from .similarity import similarity_rows


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
