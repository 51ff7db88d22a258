"""The momentum update of cluster centres by the hardest entry of each cluster in a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def update_memory_by_hardest_(
    memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor | float
) -> None:
    """M[i] <- normalize(α M[i] + (1 − α) f) for each i in ``index``, f its entry that is least similar to M[i].

    Of equally similar entries the first; NaN is the least. A row that would not be finite stays. No step waits for the
    device.
    """
    if index.numel() == 0:
        return
    rows = memory[index]
    similarity = (rows * features).sum(1).nan_to_num(nan=-torch.inf)
    lowest = similarity.new_full((len(memory),), torch.inf).scatter_reduce(0, index, similarity, "amin")
    last = len(index) - 1
    entries = torch.arange(len(index), device=index.device)
    candidates = entries.where(similarity == lowest[index], last)
    hardest = torch.full_like(lowest, last, dtype=torch.int64).scatter_reduce(0, index, candidates, "amin")
    # α = 0: the old row does not count, whatever it holds.
    kept = torch.where(
        torch.as_tensor(momentum, dtype=rows.dtype, device=rows.device) == 0,
        torch.zeros_like(rows),
        momentum * rows,
    )
    blend = kept + (1 - momentum) * features[hardest[index]]
    length = torch.linalg.vector_norm(blend, dim=1, keepdim=True, dtype=torch.float64).to(blend.dtype)
    fresh = blend / length.clamp_min(1e-12)
    memory[index] = torch.where(length.isfinite(), fresh, rows)  # entries of one row write the same
