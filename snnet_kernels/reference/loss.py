"""The mutual label loss (Eq. 8) of up to three label sets, in two stages: select, reduce.

``L = Σ_k λ_k L(s, y_k) / Σ_k λ_k``, the mean over the batch. With ``kind="l2"`` L is Eq. 2/5/7 as printed,
``Σ_j (s_j − y_j)²``. With ``kind="mmcl"`` it is ``δ mean_Pos (1 − s)² + mean_Hard (1 + s)²``, Hard being the
``max(1, floor(r |Neg|))`` negatives with the largest s, ties by lower index.

The hard negatives of the label sets differ only in the few positives, so one selection serves all of them,
and the loss becomes a sum over few entries (b, j): ``Σ_e w_e (t_e − s_e)²`` with targets t = ±1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import label_entries
from .label_memory import labels_at, unpack_labels
from .selection import ordered_topk
from .similarity import memory_similarity, memory_similarity_backward


class LossEntries(NamedTuple):
    """The entries e of the similarity matrix that an ``mmcl`` loss reads, each [K]."""

    row: Tensor  # int64
    column: Tensor  # int64
    target: Tensor  # +1 for a positive, -1 for a hard negative
    weight: Tensor


def mutual_label_loss(
    similarity: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    """The loss of ``similarity`` [B, n], in plain differentiable PyTorch."""
    labels, weights = _active(labels, weights)
    if similarity.shape[0] == 0 or similarity.shape[1] == 0:
        return similarity.sum()
    if kind == "l2":
        return reduce_l2(similarity, labels, weights)[0]
    entries = select_entries(similarity.detach(), labels, weights, delta, hard_negative_ratio)
    return reduce_entries(similarity, entries)[0]


def mutual_label_loss_with_grad(
    similarity: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    kind: str,
    delta: float,
    hard_negative_ratio: float,
) -> tuple[Tensor, Tensor]:
    """The loss and ∂L/∂s [B, n] in one pass: the gradient with respect to s needs nothing but s."""
    similarity = similarity.contiguous()  # and so is the gradient, as in the compiled forms
    labels, weights = _active(labels, weights)
    if similarity.shape[0] == 0 or similarity.shape[1] == 0:
        return similarity.new_zeros(()), torch.zeros_like(similarity)
    if kind == "l2":
        loss, difference = reduce_l2(similarity, labels, weights)
        return loss, difference.mul_(2 / similarity.shape[0])
    entries = select_entries(similarity, labels, weights, delta, hard_negative_ratio)
    loss, slope = reduce_entries(similarity, entries)
    grad = torch.zeros_like(similarity)
    return loss, grad.index_put_((entries.row, entries.column), slope, accumulate=True)


def fused_mutual_label_loss(
    features: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    similarity: Tensor | None = None,
    kind: str = "mmcl",
    delta: float = 5.0,
    hard_negative_ratio: float = 0.01,
) -> Tensor:
    """The loss of ``features`` [B, d], in plain differentiable PyTorch; a ``similarity`` at hand saves nothing."""
    return mutual_label_loss(
        features @ memory.t(),
        labels,
        weights,
        kind=kind,
        delta=delta,
        hard_negative_ratio=hard_negative_ratio,
    )


def fused_mutual_label_loss_with_grad(
    features: Tensor,
    memory: Tensor,
    similarity: Tensor | None,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    kind: str,
    delta: float,
    hard_negative_ratio: float,
) -> tuple[Tensor, Tensor]:
    """The loss from ``features`` [B, d] and ∂L/∂f [B, d]; ``similarity`` is f Mᵀ where it is at hand."""
    s = memory_similarity(features, memory) if similarity is None else similarity
    loss, grad = mutual_label_loss_with_grad(s, labels, weights, kind, delta, hard_negative_ratio)
    return loss, memory_similarity_backward(grad, memory)


def _active(labels: Sequence[Tensor], weights: Sequence[float]) -> tuple[list[Tensor], list[float]]:
    """The label sets that count, their weights divided by the sum of the weights."""
    total = sum(weights)
    pairs = [(label, weight / total) for label, weight in zip(labels, weights, strict=True) if weight > 0]
    return [label for label, _ in pairs], [weight for _, weight in pairs]


def select_entries(
    similarity: Tensor, labels: Sequence[Tensor], weights: Sequence[float], delta: float, ratio: float
) -> LossEntries:
    """Stage one: the entries of an ``mmcl`` loss with their weights (those of the batch mean included)."""
    n = similarity.shape[1]
    columns = ordered_topk(similarity, selection_width(labels, n, ratio))[1]
    return entries_at(columns, labels, weights, n, delta, ratio, similarity.dtype)


def selection_width(labels: Sequence[Tensor], n: int, ratio: float) -> int:
    """How many of the largest s of each row are sure to hold the hard negatives of every label set."""
    union = labels[0]
    for other in labels[1:]:
        union = union | other
    row, _ = label_entries(union, n)
    most = int(torch.bincount(row).max()) if row.numel() else 0
    return min(n, max(1, int(ratio * n)) + most)


def entries_at(
    columns: Tensor,
    labels: Sequence[Tensor],
    weights: Sequence[float],
    n: int,
    delta: float,
    ratio: float,
    dtype: torch.dtype,
) -> LossEntries:
    """The entries of the loss where the largest s of each row stand at ``columns`` [B, width]."""
    batch_size = columns.shape[0]
    parts: list[LossEntries] = []
    for label, weight in zip(labels, weights, strict=True):
        row, column = label_entries(label, n)
        positives = torch.bincount(row, minlength=batch_size)
        negatives = n - positives
        hard = (ratio * negatives.double()).floor().long().clamp_min(1).minimum(negatives)
        share = weight / batch_size
        value = delta * share / positives.to(dtype)[row]
        parts.append(LossEntries(row, column, torch.ones_like(value), value))
        negative = ~labels_at(label, columns)
        chosen = negative & (negative.cumsum(1) <= hard[:, None])
        row, place = chosen.nonzero(as_tuple=True)
        value = share / hard.to(dtype)[row]
        parts.append(LossEntries(row, columns[row, place], -torch.ones_like(value), value))
    return LossEntries(*(torch.cat(part) for part in zip(*parts, strict=True)))


def reduce_entries(similarity: Tensor, entries: LossEntries) -> tuple[Tensor, Tensor]:
    """Stage two of ``mmcl``: (the loss, ∂L/∂s_e [K])."""
    difference = similarity[entries.row, entries.column] - entries.target
    return (entries.weight * difference.square()).sum(), 2 * entries.weight * difference


def reduce_l2(
    similarity: Tensor, labels: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Stage two of ``l2``: (the loss, s − ȳ [B, n]) with ȳ = Σ_k λ_k y_k / Σ_k λ_k.

    Σ_k λ_k (s − y_k)² / Σ λ_k = (s − ȳ)² + (ȳ − ȳ²) because y² = y: one pass over s for all label sets.
    """
    n = similarity.shape[1]
    mean_label = torch.zeros_like(similarity)
    for label, weight in zip(labels, weights, strict=True):
        mean_label.add_(unpack_labels(label, n), alpha=weight)
    difference = similarity - mean_label
    constant = (mean_label - mean_label.square()).sum()
    return (difference.square().sum() + constant) / similarity.shape[0], difference
