"""Label prediction and nearest neighbours read from neighbour lists; a product of a row where its list does not tell.

Both return how many rows were multiplied, too: the only way in which lists can be slow.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..layout import label_bytes
from ..neighbor_list_layout import NeighborLists
from ..precision import matmul
from .label_prediction import ROWS_AT_ONCE, count_above, decide_labels, select_candidates
from .neighbors import nearest_neighbors
from .selection import ordered_topk


def mplp_from_lists(
    memory: Tensor,
    index: Tensor,
    lists: NeighborLists,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    query_rows: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Packed pseudo labels [B, label_bytes(n)] as :func:`.mplp` predicts them, and how many rows were multiplied."""
    n = memory.shape[0]
    if index.numel() == 0:
        return index.new_zeros(0, label_bytes(n), dtype=torch.uint8), 0
    made = 0
    if query_rows is not None:
        columns, _, counts = select_candidates(query_rows, threshold)
    else:
        columns, counts, made = _candidates(memory, index, lists, threshold)
    max_rank = counts.clamp_min(min_rank)
    # Up to two candidates are positive whatever the check says, and the anchor itself never counts.
    walked = torch.where((counts > 2) & (max_rank < n - 1), counts, 0)
    first, checked = _first_inconsistent(memory, lists, columns, walked, max_rank)
    first = torch.where(walked > 0, first, counts)
    return decide_labels(columns, counts, first, index, n, strict=False), made + checked


def nearest_from_lists(
    memory: Tensor, index: Tensor, lists: NeighborLists, k: int = 1
) -> tuple[Tensor, Tensor, int]:
    """The k most similar other images as :func:`.nearest_neighbors` finds them, and how many rows were multiplied."""
    n = memory.shape[0]
    columns, values = _in_order_of_columns(lists, index, n)
    own = columns == index[:, None]
    others = min(k, columns.shape[1])
    similarity, places = ordered_topk(values.masked_fill(own, -torch.inf), others)
    neighbors = columns.gather(1, places)
    neighbors = pad(neighbors.masked_fill(similarity == -torch.inf, -1), (0, k - others), value=-1)
    similarity = pad(similarity, (0, k - others), value=-torch.inf)
    # What is not listed may be as large as the floor, and come first by its column.
    told = (similarity[:, -1] > lists.floors[index]) | (lists.floors[index] == -torch.inf)
    untold = (~told).nonzero().flatten()
    if untold.numel():
        neighbors[untold], similarity[untold] = nearest_neighbors(memory, index[untold], k)
    return neighbors, similarity, len(untold)


def _in_order_of_columns(lists: NeighborLists, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Columns [B, K] of the rows ``index`` in rising order, n in empty places behind them, and their values."""
    columns = lists.columns[index].long()
    columns, order = columns.masked_fill(columns < 0, n).sort(dim=1)
    return columns, lists.values[index].gather(1, order)


def _candidates(
    memory: Tensor, index: Tensor, lists: NeighborLists, threshold: float
) -> tuple[Tensor, Tensor, int]:
    """Candidates above the threshold, ordered: columns [B, c], counts [B], and how many rows were multiplied.

    Empty places have column n, which no candidate has.
    """
    n = memory.shape[0]
    listed, values = _in_order_of_columns(lists, index, n)
    places, _, counts = select_candidates(values, threshold)
    columns = listed.gather(1, places)
    incomplete = (
        (lists.floors[index] > torch.tensor(threshold, dtype=torch.float32, device=index.device))
        .nonzero()
        .flatten()
    )
    if incomplete.numel():
        products = matmul(memory[index[incomplete]], memory.t())
        found, _, counts[incomplete] = select_candidates(products, threshold)
        width = max(columns.shape[1], found.shape[1])
        columns = pad(columns, (0, width - columns.shape[1]), value=n)
        columns[incomplete] = pad(found, (0, width - found.shape[1]), value=n)
    return columns, counts, len(incomplete)


def _first_inconsistent(
    memory: Tensor, lists: NeighborLists, columns: Tensor, counts: Tensor, max_rank: Tensor
) -> tuple[Tensor, int]:
    """j* [B] as :func:`.first_inconsistent_candidate` finds it, and how many rows were multiplied."""
    first, made = counts.clone(), 0
    position = torch.arange(columns.shape[1], device=columns.device)
    pending = (position[:, None] < counts[None, :]).nonzero()
    for start in range(0, pending.shape[0], ROWS_AT_ONCE):
        j, sample = pending[start : start + ROWS_AT_ONCE].unbind(1)
        walking = j < first[sample]
        j, sample = j[walking], sample[walking]
        candidates, anchors = columns[sample, j], columns[sample, 0]
        inconsistent, untold = _ranks_behind(lists, candidates, anchors, max_rank[sample])
        if untold.any():
            distinct, inverse = candidates[untold].unique(return_inverse=True)
            rows = matmul(memory[distinct], memory.t())[inverse]
            bars = rows.gather(1, anchors[untold, None]).squeeze(1)
            inconsistent[untold] = count_above(rows, bars) > max_rank[sample[untold]]
            made += len(distinct)
        first.scatter_reduce_(0, sample[inconsistent], j[inconsistent], reduce="amin")
    return first, made


def _ranks_behind(
    lists: NeighborLists, candidates: Tensor, anchors: Tensor, max_rank: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether more than ``max_rank`` images are more similar to a candidate than its anchor; where lists do not tell.

    What counts is above S[p, a]. A candidate that lists its anchor lists all of that down to its floor; one that does
    not has it at or below its floor, and all that it lists above the floor counts.
    """
    columns, values, floors = lists.columns[candidates], lists.values[candidates], lists.floors[candidates]
    is_anchor = columns == anchors[:, None]
    bars = values.masked_fill(~is_anchor, -torch.inf).amax(1)
    bars = torch.where(is_anchor.any(1), bars, floors)
    behind = count_above(values, bars) > max_rank
    return behind, ~behind & ~(is_anchor.any(1) & (bars >= floors))
