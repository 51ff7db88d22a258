"""The same operations one sample at a time, the way re-identification code bases usually write them.

Same results as the vectorised reference, at a very different cost: full sorts, a product per sample, label
matrices in float. An oracle that reads like the definition, and the baseline of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import matmul
from .label_memory import pack_labels, unpack_labels
from .memory_update import EPS


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
    n = memory.shape[0]
    labels = torch.zeros(index.shape[0], n, dtype=torch.bool, device=memory.device)
    bar = torch.tensor(threshold, dtype=torch.float32, device=memory.device).to(memory.dtype)

    def rows_of(which: Tensor) -> Tensor:
        return cache[which] if cache is not None else matmul(memory[which], memory.t())

    def without_nan(values: Tensor) -> Tensor:  # sort would put it first, but it is above nothing
        return values.masked_fill(values.isnan(), -torch.inf)

    rows = without_nan(query_rows if query_rows is not None else rows_of(index))
    for b in range(index.shape[0]):
        values, order = rows[b].sort(descending=True, stable=True)
        c = int((values > bar).sum())
        candidates, anchor = order[:c], order[0]
        k = c if strict else max(c, min_rank)
        ranked = rows_of(candidates)
        consistent = c
        for j in range(c):
            ranking = without_nan(ranked[j]).sort(descending=True).values
            if k < n and ranking[k] > ranked[j, anchor]:
                consistent = j
                break
        positives = consistent if strict else min(max(2, consistent), c)
        labels[b, candidates[:positives]] = True
        labels[b, index[b]] = True
    return pack_labels(labels)


def nearest_neighbors(
    memory: Tensor,
    index: Tensor,
    k: int = 1,
    *,
    cache: Tensor | None = None,
    query_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    neighbors = torch.full((index.shape[0], k), -1, dtype=torch.int64, device=memory.device)
    similarity = torch.full((index.shape[0], k), -torch.inf, dtype=memory.dtype, device=memory.device)
    for b, i in enumerate(index.tolist()):
        if query_rows is not None:
            row = query_rows[b]
        else:
            row = cache[i] if cache is not None else matmul(memory[i : i + 1], memory.t())[0]
        values, order = row.sort(descending=True, stable=True)
        others = order != i
        found = min(k, int(others.sum()))
        neighbors[b, :found] = order[others][:found]
        similarity[b, :found] = values[others][:found]
    return neighbors, similarity


def mutual_label_loss(
    similarity: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    batch_size, n = similarity.shape
    total = similarity.sum() * 0
    for label, weight in zip(labels, weights, strict=True):
        positive = unpack_labels(label, n)
        for b in range(batch_size):
            s, y = similarity[b], positive[b]
            if kind == "l2":
                total = total + weight * (s - y.to(s.dtype)).square().sum()
                continue
            if y.any():
                total = total + weight * delta * (1 - s[y]).square().mean()
            if (~y).any():
                negatives = s[~y].sort(descending=True, stable=True).values
                hard = max(1, int(hard_negative_ratio * negatives.numel()))
                total = total + weight * (1 + negatives[:hard]).square().mean()
    return total / (sum(weights) * max(batch_size, 1))


def update_memory_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor | float) -> None:
    for i, feature in zip(index.tolist(), features, strict=True):
        row = (1 - momentum) * feature
        if momentum != 0:
            row = momentum * memory[i] + row
        length = row.double().norm().to(row.dtype)
        if length.isfinite():
            memory[i] = row / length.clamp_min(EPS)


def write_labels_(dense: Tensor, index: Tensor, labels: Tensor) -> None:
    """P[index] <- labels where P is a bool [n, n] matrix and its columns are read as ``P[:, index]``."""
    for i, label in zip(index.tolist(), labels, strict=True):
        dense[i] = unpack_labels(label[None], dense.shape[1])[0]
