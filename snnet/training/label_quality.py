"""How consistent and, where identities are known, how right the label memory is: shown, never used in training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snnet_kernels import PseudoLabelMemory

ROWS_AT_A_TIME = 1024


def label_quality(labels: PseudoLabelMemory, pids: np.ndarray) -> dict[str, float]:
    """Precision and recall of the label memory's pairs of different images against identities.

    Args:
        labels: the pseudo label memory of n images.
        pids: int64 [n]; -1 is nobody, who has no other image.

    Returns:
        ``label_precision`` = |predicted and true| / |predicted| and ``label_recall`` = |predicted and true| /
        |true|, over all ordered pairs i != j; an entry whose denominator is 0 is absent.
    """
    n = len(pids)
    identities = torch.as_tensor(pids, device=labels.device)
    predicted = correct = 0
    for first in range(0, n, ROWS_AT_A_TIME):
        row, column = _others(labels, first)
        predicted += len(row)
        correct += int(((identities[row] == identities[column]) & (identities[row] >= 0)).sum())
    _, sizes = np.unique(pids[pids >= 0], return_counts=True)
    counts = {"label_precision": predicted, "label_recall": int((sizes * (sizes - 1)).sum())}
    return {name: correct / count for name, count in counts.items() if count}


def label_symmetry(labels: PseudoLabelMemory) -> dict[str, float]:
    """How mutual the label memory's pairs of different images are.

    Returns:
        ``label_symmetry``: of the pairs i != j with P[i, j] set the share with P[j, i] set; absent where no
        pair is set.
    """
    n = labels.num_instances
    keys, mirrored = [], []
    for first in range(0, n, ROWS_AT_A_TIME):
        row, column = _others(labels, first)
        keys.append(row * n + column)
        mirrored.append(column * n + row)
    pairs = torch.cat(keys) if keys else torch.zeros(0)
    if not len(pairs):
        return {}
    return {
        "label_symmetry": int(torch.isin(torch.cat(mirrored), pairs, assume_unique=True).sum()) / len(pairs)
    }


def _others(labels: PseudoLabelMemory, first: int) -> tuple[Tensor, Tensor]:
    """The pairs (row, column) of some rows from ``first`` on, without each image's own."""
    row, column = labels.pairs(first, first + ROWS_AT_A_TIME)
    away = row != column
    return row[away], column[away]
