"""Label prediction and search in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from snnet_kernels.precision import matmul
from snnet_kernels.reference.label_prediction import first_inconsistent_candidate, select_candidates

from ..case import MIN_RANK, THRESHOLD


def label_rows(memory: Tensor, index: Tensor, matrix: Tensor | None) -> Tensor:
    """S[index] [B, n], from S or by one product."""
    return matrix[index] if matrix is not None else matmul(memory[index], memory.t())


def predict_labels(memory: Tensor, index: Tensor, rows: Tensor, matrix: Tensor | None) -> Tensor:
    """bool [B, n]: the vectorised reference, without packing the labels into bits.

    Counts ranks instead of sorting, for the candidates of all samples together, a sample's only as far as its
    walk goes; without S each distinct candidate is multiplied once.
    """
    columns, _, counts = select_candidates(rows, THRESHOLD)
    walked = torch.where(counts > 2, counts, 0)
    first = first_inconsistent_candidate(memory, columns, walked, counts.clamp_min(MIN_RANK), matrix)
    positives = torch.where(walked > 0, first, counts).clamp_min(2).minimum(counts)
    chosen = torch.arange(columns.shape[1], device=columns.device) < positives[:, None]
    labels = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    return labels.scatter_(1, columns, chosen).scatter_(1, index[:, None], True)


def predict_labels_static(index: Tensor, rows: Tensor, matrix: Tensor, width: int) -> Tensor:
    """bool [B, n], written for torch.compile: every shape is known, no count is read by the host.

    ``width`` is at least the largest number of candidates of any image. Compiled, rows of candidates are gathered,
    compared and counted in one loop; eager PyTorch would write [B, width, n].
    """
    bar = torch.tensor(THRESHOLD, dtype=torch.float32).item()
    similarity, columns = rows.topk(width)
    counts = (rows > bar).sum(1)
    bars = matrix[columns, columns[:, :1]]
    ranks = (matrix[columns] > bars[:, :, None]).sum(2)
    consistent = (ranks <= counts.clamp_min(MIN_RANK)[:, None]) | (similarity <= bar)
    positives = consistent.long().cumprod(1).sum(1).clamp_min(2).minimum(counts)
    chosen = torch.arange(width, device=columns.device) < positives[:, None]
    labels = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    return labels.scatter(1, columns, chosen).scatter(1, index[:, None], torch.ones_like(chosen[:, :1]))


def largest_number_of_candidates(matrix: Tensor) -> int:
    """Of all images, rounded up to a multiple of 8."""
    most = max(int((part > THRESHOLD).sum(1).max()) for part in matrix.split(1024))
    return -(-most // 8) * 8


def nearest_others(index: Tensor, rows: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """(index [B, k], similarity [B, k]) of the k most similar others, by ``topk``; writes into ``rows``."""
    similarity, neighbors = rows.scatter_(1, index[:, None], -torch.inf).topk(k)
    return neighbors, similarity
