"""The momentum update of the exemplar memory, and of the cached similarity matrix without a product.

With m' = normalize(α m + (1 − α) f) for the rows in ``index``, s = f Mᵀ of the memory before the update
and G = f fᵀ, the rows of S = M Mᵀ follow from what is at hand:

    S'[i, l] = (α S[i, l] + (1 − α) s[b, l]) / ν_b                                    l outside the batch
    S'[i, j] = (α² S[i, j] + α(1 − α)(s[b, j] + s[c, i]) + (1 − α)² G[b, c]) / (ν_b ν_c)   inside

where ν_b is the length of α m + (1 − α) f_b and i, j are the positions of batch entries b, c. An entry whose ν is not
finite is left out; for α = 0 what stood there before does not count, whatever it was (0 · NaN would live on).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import matmul

EPS = 1e-12  # the smallest length a row is divided by, as in torch.nn.functional.normalize


def update_memory_(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor | float,
    *,
    cache: Tensor | None = None,
    similarity: Tensor | None = None,
) -> None:
    """M[index] <- normalize(α M[index] + (1 − α) f), in place; repeated indices one after the other."""
    if index.numel() == 0:
        return
    if cache is None:
        for entries in occurrence_rounds(index):
            _blend_rows_(memory, index, features, entries, momentum)
        return
    s = matmul(features, memory.t()) if similarity is None else similarity
    gram = matmul(features, features.t())
    rounds = occurrence_rounds(index)
    if len(rounds) > 1:
        s = s.clone()
    for entries in rounds:
        entries, lengths = _blend_rows_(memory, index, features, entries, momentum)
        if entries.numel() == 0:
            continue
        position = index[entries]
        update_cache_(cache, memory, position, s[entries], gram[entries][:, entries], lengths, momentum)
        if len(rounds) > 1:  # the later entries meet the memory as it is now
            s[:, position] = (_scaled(momentum, s[:, position]) + (1 - momentum) * gram[:, entries]) / lengths
            grows = position[lengths <= momentum]
            s[:, grows] = matmul(features, memory[grows].t())


def occurrence_rounds(index: Tensor) -> list[Tensor]:
    """Batch entries [B] split so that no index comes twice in a part, earlier entries in earlier parts."""
    same = index[:, None] == index[None, :]
    turn = same.tril(-1).sum(1)
    return [(turn == r).nonzero().flatten() for r in range(int(turn.max()) + 1)]


def _scaled(weight: Tensor | float, values: Tensor) -> Tensor:
    """weight · values, and 0 for a weight of 0 whatever the values."""
    return torch.where(torch.as_tensor(weight, device=values.device) == 0, 0.0, weight * values)


def _blend_rows_(
    memory: Tensor, index: Tensor, features: Tensor, entries: Tensor, momentum: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Blend and renormalise the rows of batch ``entries`` [b], of distinct index.

    Returns the entries that were written, those whose length is finite, and their lengths ν before the division.
    """
    blended = _scaled(momentum, memory[index[entries]]) + (1 - momentum) * features[entries]
    lengths = torch.linalg.vector_norm(blended, dim=1, dtype=torch.float64).to(
        blended.dtype
    )  # a sum of squares
    finite = lengths.isfinite()
    entries, blended, lengths = entries[finite], blended[finite], lengths[finite].clamp_min(EPS)
    memory[index[entries]] = blended / lengths[:, None]
    return entries, lengths


def update_cache_(
    cache: Tensor,
    memory: Tensor,
    index: Tensor,
    similarity: Tensor,
    gram: Tensor,
    lengths: Tensor,
    momentum: Tensor | float,
) -> None:
    """Bring rows and columns ``index`` [b] (distinct) of the cache [n, n] up to the updated memory [n, d].

    ``similarity`` [b, n] and ``gram`` [b, b] are the products of the features with the memory before the
    update and with themselves, ``lengths`` [b] the ν of each row.
    """
    before = cache[index]
    rows = (_scaled(momentum, before) + (1 - momentum) * similarity) / lengths[:, None]
    cross = similarity[:, index]
    block = _scaled(momentum * momentum, before[:, index])
    block = block + _scaled(momentum * (1 - momentum), cross + cross.t())
    block = block + (1 - momentum) * (1 - momentum) * gram
    rows[:, index] = block / (lengths[:, None] * lengths[None, :])
    # Old error is multiplied by α/ν. Where that does not shrink it, the row is computed afresh.
    grows = (lengths <= momentum).nonzero().flatten()
    if grows.numel():
        rows[grows] = matmul(memory[index[grows]], memory.t())
        rows[:, index[grows]] = rows[grows][:, index].t()
    block = rows[:, index]
    rows[:, index] = block.tril() + block.tril(-1).t()  # so that rows and columns agree to the bit
    cache[index] = rows
    cache[:, index] = rows.t()
