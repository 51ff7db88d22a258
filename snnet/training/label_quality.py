"""How consistent and, where identities are known, how right the label memory is: shown, never used in training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snnet_kernels import PseudoLabelMemory, unpack_labels

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
    device = labels.row_bits.device
    identities = torch.as_tensor(pids, device=device)
    predicted, correct = 0, torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, n, ROWS_AT_A_TIME):
        index = torch.arange(start, min(start + ROWS_AT_A_TIME, n), device=device)
        # Few of the n² pairs are set.
        row, column = _others(labels.rows(index), index, n).nonzero(as_tuple=True)
        predicted += len(row)
        of_row = identities[index[row]]
        correct = correct + torch.count_nonzero((of_row == identities[column]) & (of_row >= 0))
    _, sizes = np.unique(pids[pids >= 0], return_counts=True)
    counts = {"label_precision": predicted, "label_recall": int((sizes * (sizes - 1)).sum())}
    return {name: int(correct) / count for name, count in counts.items() if count}


def label_symmetry(labels: PseudoLabelMemory) -> dict[str, float]:
    """How mutual the label memory's pairs of different images are.

    Returns:
        ``label_symmetry``: of the pairs i != j with P[i, j] set the share with P[j, i] set; absent where no
        pair is set.
    """
    n = labels.num_instances
    device = labels.row_bits.device
    pairs = mutual = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, n, ROWS_AT_A_TIME):
        index = torch.arange(start, min(start + ROWS_AT_A_TIME, n), device=device)
        rows = labels.rows(index)
        pairs = pairs + torch.count_nonzero(_others(rows, index, n))
        mutual = mutual + torch.count_nonzero(_others(rows & labels.columns(index), index, n))
    return {"label_symmetry": int(mutual) / int(pairs)} if int(pairs) else {}


def _others(
    labels: Tensor,  # uint8 [B, L], packed rows of P
    index: Tensor,  # int64 [B], whose they are
    n: int,
) -> Tensor:
    """The labels as bool [B, n] without each image's own."""
    found = unpack_labels(labels, n)
    found[torch.arange(len(index), device=index.device), index] = False
    return found
