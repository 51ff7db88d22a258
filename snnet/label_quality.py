"""How right the pseudo labels are, where identities are known: shown to the user, never used in training."""

from __future__ import annotations

import numpy as np
import torch

from snnet_kernels import PseudoLabelMemory, unpack_labels

ROWS_AT_A_TIME = 1024


def label_quality(labels: PseudoLabelMemory, pids: np.ndarray) -> dict[str, float]:
    """Precision and recall of the label memory's pairs of different images against identities.

    Args:
        labels: the pseudo label memory of n images.
        pids: int64 [n].

    Returns:
        ``label_precision`` = |predicted and true| / |predicted| and ``label_recall`` = |predicted and true| /
        |true|, over all ordered pairs i != j; an entry whose denominator is 0 is absent.
    """
    n = len(pids)
    device = labels.row_bits.device
    identities = torch.as_tensor(pids, device=device)
    predicted = correct = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, n, ROWS_AT_A_TIME):
        index = torch.arange(start, min(start + ROWS_AT_A_TIME, n), device=device)
        found = unpack_labels(labels.rows(index), n)  # [rows, n]
        found[torch.arange(len(index), device=device), index] = False
        predicted = predicted + found.sum()
        correct = correct + (found & (identities[index, None] == identities)).sum()
    _, sizes = np.unique(pids, return_counts=True)
    counts = {"label_precision": int(predicted), "label_recall": int((sizes * (sizes - 1)).sum())}
    return {name: int(correct) / count for name, count in counts.items() if count}
