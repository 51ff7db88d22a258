"""How consistent and, where identities are known, how right the label memory is: shown, never used in training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snnet_kernels import PseudoLabelMemory, unpack_labels

ROWS_AT_A_TIME = 128


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
        row, column = _others(labels, first, first + ROWS_AT_A_TIME)
        predicted += len(row)
        correct += int(((identities[row] == identities[column]) & (identities[row] >= 0)).sum())
    counts = {"label_precision": predicted, "label_recall": pairs_within(pids)}
    return {name: correct / count for name, count in counts.items() if count}


def pairs_within(groups: np.ndarray) -> int:
    """Ordered pairs of different images of one group, such as an identity; -1 is no group."""
    _, sizes = np.unique(groups[groups >= 0], return_counts=True)
    return int((sizes * (sizes - 1)).sum())


def precision_and_recall(correct: int, predicted: int, true: int) -> tuple[str, str]:
    """Both in percent, of numbers of pairs; "-" if there is no pair."""
    precision, recall = (f"{100 * correct / count:.1f}" if count else "-" for count in (predicted, true))
    return precision, recall


def label_symmetry(labels: PseudoLabelMemory) -> dict[str, float]:
    """How mutual the label memory's pairs of different images are.

    Returns:
        ``label_symmetry``: of the pairs i != j with P[i, j] set the share with P[j, i] set; absent where no
        pair is set.
    """
    count, mutual = _mutual_of_bits(labels) if labels.storage == "bits" else _mutual_of_lists(labels)
    return {"label_symmetry": mutual / count} if count else {}


def _mutual_of_bits(labels: PseudoLabelMemory) -> tuple[int, int]:
    """How many pairs of different images are set, and of how many of them the mirrored pair is, too."""
    n = labels.num_instances
    count = mutual = 0
    for first in range(0, n, ROWS_AT_A_TIME):
        index = torch.arange(first, min(first + ROWS_AT_A_TIME, n), device=labels.device)
        rows = labels.rows(index)
        for_all = unpack_labels(rows, n)
        for_both = unpack_labels(rows & labels.columns(index), n)
        for found in (for_all, for_both):
            found[index - first, index] = False
        count += int(for_all.count_nonzero())
        mutual += int(for_both.count_nonzero())
    return count, mutual


def _mutual_of_lists(labels: PseudoLabelMemory) -> tuple[int, int]:
    """The same of all pairs at a time, of which lists have few."""
    n = labels.num_instances
    row, column = _others(labels, 0, n)
    pairs, mirrored = row * n + column, column * n + row
    del row, column
    return len(pairs), int(torch.isin(mirrored, pairs, assume_unique=True).sum())


def _others(labels: PseudoLabelMemory, first: int, last: int) -> tuple[Tensor, Tensor]:
    """The pairs (row, column) of the rows [first, last), without each image's own."""
    row, column = labels.pairs(first, last)
    away = row != column
    return row[away], column[away]
