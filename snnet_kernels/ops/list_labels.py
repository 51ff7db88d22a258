"""Labels and nearest neighbours from neighbour lists, which are passed as the tensors of :mod:`.neighbor_lists`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..checks import check_index_values
from ..layout import label_bytes
from ..neighbor_list_layout import NeighborLists
from .operation import operation


@operation(
    lambda memory, index, *_: (
        memory.new_empty(index.shape[0], label_bytes(memory.shape[0]), dtype=torch.uint8),
        index.new_empty(()),
    )
)
def mplp_from_lists(
    memory: Tensor,
    index: Tensor,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    query_rows: Tensor | None,
    threshold: float,
    min_rank: int,
) -> tuple[Tensor, Tensor]:
    """Labels uint8 [B, L], and the number int64 [] of rows of S that were computed."""
    check_index_values("index", index, memory.shape[0])
    lists = NeighborLists(columns, values, counts, floors)
    labels, products = reference.mplp_from_lists(
        memory, index, lists, threshold, min_rank, query_rows=query_rows
    )
    return labels, torch.tensor(products, device=index.device)


@operation(
    lambda memory, index, columns, values, counts, floors, k: (
        index.new_empty(index.shape[0], k),
        memory.new_empty(index.shape[0], k),
        index.new_empty(()),
    )
)
def nearest_from_lists(
    memory: Tensor, index: Tensor, columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours int64 [B, k], their similarities [B, k], and the number int64 [] of rows of S that were computed."""
    check_index_values("index", index, memory.shape[0])
    lists = NeighborLists(columns, values, counts, floors)
    neighbors, similarity, products = reference.nearest_from_lists(memory, index, lists, k)
    return neighbors, similarity, torch.tensor(products, device=index.device)
