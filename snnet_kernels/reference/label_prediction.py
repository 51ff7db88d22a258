"""MPLP, memory-based positive label prediction, in three stages: select, count, decide."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import label_bytes
from .label_memory import pack_labels
from .selection import ordered_topk
from .similarity import similarity_rows

# Candidate rows that are compared at once without a cache: bounds the scratch memory to this times n floats.
ROWS_AT_ONCE = 512


def select_candidates(rows: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates above the threshold in each row [B, n], by falling similarity, ties by lower column.

    Returns (columns int64 [B, max(c, 1)], similarity [B, max(c, 1)], count c int64 [B]), c the largest
    count of the batch. The first column is the row's anchor also where nothing passes the threshold;
    entries past a row's count stand for nothing. NaN is above no threshold and comes last.
    """
    # In float32 0.6 is a little more than 0.6: rounded first, it is the same bar for rows of any type.
    bar = torch.tensor(threshold, dtype=torch.float32, device="cpu").item()
    counts = (rows > bar).sum(1)
    width = max(int(counts.max()), 1) if counts.numel() else 1
    similarity, columns = ordered_topk(rows, width)
    if bool(similarity[:, :1].isnan().any()):  # topk puts NaN first
        similarity, columns = ordered_topk(rows.masked_fill(rows.isnan(), -torch.inf), width)
    return columns, similarity, counts


def count_above(rows: Tensor, bars: Tensor) -> Tensor:
    """#{l : S[p, l] > bar} int64 [K] over rows [K, n] and their bars [K]."""
    return (rows > bars[:, None]).sum(1)


def decide_labels(
    columns: Tensor,
    counts: Tensor,
    first_inconsistent: Tensor,
    index: Tensor,
    num_instances: int,
    strict: bool,
) -> Tensor:
    """Packed labels [B, label_bytes(n)] of ordered candidates [B, c], their counts and j* [B].

    Columns past a count stand for nothing: other ones than the candidates before it, or n.
    """
    positives = first_inconsistent if strict else first_inconsistent.clamp_min(2)
    chosen = torch.arange(columns.shape[1], device=columns.device) < positives.minimum(counts)[:, None]
    labels = torch.zeros(index.shape[0], num_instances + 1, dtype=torch.bool, device=index.device)
    labels.scatter_(1, columns, chosen)
    labels.scatter_(1, index[:, None], True)
    return pack_labels(labels[:, :num_instances])


def first_inconsistent_candidate(
    memory: Tensor, columns: Tensor, counts: Tensor, max_rank: Tensor, cache: Tensor | None
) -> Tensor:
    """j* [B]: the first position whose candidate p has #{l : S[p, l] > S[p, a]} > max_rank, else the count.

    Works through all (candidate position, sample) pairs in order of position, a bounded number at a time,
    and passes over the samples whose walk has ended.
    """
    first = counts.clone()
    anchors = columns[:, 0]
    position = torch.arange(columns.shape[1], device=columns.device)
    pending = (position[:, None] < counts[None, :]).nonzero()
    for start in range(0, pending.shape[0], ROWS_AT_ONCE):
        j, sample = pending[start : start + ROWS_AT_ONCE].unbind(1)
        walking = j < first[sample]
        j, sample = j[walking], sample[walking]
        candidates = columns[sample, j]
        if cache is not None:
            rows = cache[candidates]
        else:  # one image is often the candidate of several samples: a row each is multiplied once
            distinct, inverse = candidates.unique(return_inverse=True)
            rows = similarity_rows(memory, distinct, None)[inverse]
        bars = rows.gather(1, anchors[sample, None]).squeeze(1)
        inconsistent = count_above(rows, bars) > max_rank[sample]
        first.scatter_reduce_(0, sample[inconsistent], j[inconsistent], reduce="amin")
    return first


def mplp(
    memory: Tensor,
    index: Tensor,
    threshold: float = 0.6,
    min_rank: int = 10,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
    strict: bool = False,
) -> Tensor:
    """Packed pseudo labels [B, label_bytes(n)] of ``index`` [B] by the cycle consistency of their candidates.

    ``cache`` is S = M Mᵀ [n, n], where it is at hand. ``strict`` is the reading of the MMCL paper: k = c, and exactly
    the candidates before the inconsistent one.
    """
    num_instances = memory.shape[0]
    if index.numel() == 0:
        return index.new_zeros(0, label_bytes(num_instances), dtype=torch.uint8)
    rows = query_rows if query_rows is not None else similarity_rows(memory, index, cache)
    columns, _, counts = select_candidates(rows, threshold)
    max_rank = counts if strict else counts.clamp_min(min_rank)
    # Up to two candidates are positive whatever the check says: nothing to walk, unless strict.
    walked = counts if strict else torch.where(counts > 2, counts, 0)
    first = first_inconsistent_candidate(memory, columns, walked, max_rank, cache)
    first = torch.where(walked > 0, first, counts)
    return decide_labels(columns, counts, first, index, num_instances, strict)
