"""The momentum update of the exemplar memory, and of its similarities without a product: as a matrix, or as lists.

With m' = normalize(α m + (1 − α) f) for the rows in ``index``, s = f Mᵀ of the memory before the update
and G = f fᵀ, the rows of S = M Mᵀ follow from what is at hand:

    S'[i, l] = (α S[i, l] + (1 − α) s[b, l]) / ν_b                                    l outside the batch
    S'[i, j] = (α² S[i, j] + α(1 − α)(s[b, j] + s[c, i]) + (1 − α)² G[b, c]) / (ν_b ν_c)   inside

where ν_b is the length of α m + (1 − α) f_b and i, j are the positions of batch entries b, c. An entry whose ν is not
finite is left out; for α = 0 what stood there before does not count, whatever it was (0 · NaN would live on).

Of symmetric neighbour lists, in which a row lists every column above its floor φ,

    listed pairs     follow as above, l outside the batch
    unlisted pairs   have S[i, l] <= φ_i and S[i, l] <= φ_l, so S'[i, l] > φ_i needs s[b, l] > φ_i (ν_b − α) / (1 − α),
                     and S'[i, l] > φ_l the same with φ_l: for the few that pass, one product of two rows decides

so that no list misses an entry above its floor, and nothing of size n is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..neighbor_list_layout import NeighborLists
from ..precision import matmul
from .neighbor_lists import _rank_in_row, _tables

EPS = 1e-12  # the smallest length a row is divided by, as in torch.nn.functional.normalize
SLACK = 1e-5  # of a similarity: more than the rounding of listed values, of s and of ν can make of a bound


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
    if cache is None:
        for entries in occurrence_rounds(index):
            _blend_rows_(memory, index, features, entries, momentum)
        return
    gram = matmul(features, features.t())
    for entries, lengths, s in _blended_rounds_(memory, index, features, momentum, similarity):
        update_cache_(cache, memory, index[entries], s, gram[entries][:, entries], lengths, momentum)


def occurrence_rounds(index: Tensor) -> list[Tensor]:
    """Batch entries [B] split so that no index comes twice in a part, earlier entries in earlier parts."""
    if index.numel() == 0:
        return []
    same = index[:, None] == index[None, :]
    turn = same.tril(-1).sum(1)
    return [(turn == r).nonzero().flatten() for r in range(int(turn.max()) + 1)]


def _blended_rounds_(
    memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor | float, similarity: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Update the memory a round at a time: yields the entries [b] that were written, ν [b], and s [b, n] of before."""
    s = matmul(features, memory.t()) if similarity is None else similarity
    rounds = occurrence_rounds(index)
    if len(rounds) > 1:
        s = s.clone()
    for entries in rounds:
        entries, lengths = _blend_rows_(memory, index, features, entries, momentum)
        if entries.numel() == 0:
            continue
        yield entries, lengths, s[entries]
        if len(rounds) > 1:  # the later entries meet the memory as it is now
            position = index[entries]
            s[:, position] = matmul(features, memory[position].t())


def _scaled(weight: Tensor | float, values: Tensor) -> Tensor:
    """weight · values, and 0 for a weight of 0 whatever the values."""
    return torch.where(
        torch.as_tensor(weight, dtype=values.dtype, device=values.device) == 0, 0.0, weight * values
    )


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


def update_memory_lists_(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor | float,
    lists: NeighborLists,
    similarity: Tensor | None = None,
) -> None:
    """M[index] <- normalize(α M[index] + (1 − α) f) and its symmetric lists; repeated indices one after the other.

    ``similarity`` [B, n] is f Mᵀ of the memory before the update.
    """
    for entries, lengths, s in _blended_rounds_(memory, index, features, momentum, similarity):
        update_lists_(lists, memory, index[entries], s, lengths, momentum)


def update_lists_(
    lists: NeighborLists,
    memory: Tensor,
    index: Tensor,
    similarity: Tensor,
    lengths: Tensor,
    momentum: Tensor | float,
) -> None:
    """Bring symmetric lists up to the updated ``memory`` [n, d], whose rows ``index`` [b] (distinct) have moved.

    ``similarity`` [b, n] is the product of the features with the memory before the update, ``lengths`` [b] the ν of
    each row. Pairs at or below both floors go; of the others a row keeps the first K by falling similarity, ties by
    lower column, and a pair that finds no room in one of its rows raises the floors of both.
    """
    n = memory.shape[0]
    changed = torch.zeros(n, dtype=torch.bool, device=memory.device)
    changed[index] = True
    row, column, value = _moved_pairs(lists, memory, index, similarity, lengths, momentum, changed)
    wanted = (value > lists.floors[row]) | (value > lists.floors[column])
    row, column, value = row[wanted], column[wanted], value[wanted]
    # The entries of all rows: those between unmoved rows as they are, and the moved pairs from both sides.
    kept_row, place = (lists.columns >= 0).nonzero().unbind(1)
    kept_column = lists.columns[kept_row, place].long()
    still = ~(changed[kept_row] | changed[kept_column])
    kept_row, kept_column = kept_row[still], kept_column[still]
    away = row != column
    row, column = torch.cat([kept_row, row, column[away]]), torch.cat([kept_column, column, row[away]])
    value = torch.cat([lists.values[kept_row, place[still]], value, value[away]])
    key, order = (row * n + column).sort()
    row, column, value = row[order], column[order], value[order]
    rank = _rank_in_row(row, column, value, n)
    mirror = torch.searchsorted(key, column * n + row)
    room = (rank < lists.capacity) & (rank[mirror] < lists.capacity)
    floors = lists.floors.scatter_reduce(0, row[~room], value[~room], "amax")
    made = _tables(row[room], column[room], value[room], floors, n, lists.capacity)
    for old, new in zip(lists, made, strict=True):
        if old is not None and new is not None:
            old.copy_(new[:, : old.shape[1]] if new.dim() == 2 else new)  # mirrors only where they are kept


def _moved_pairs(
    lists: NeighborLists,
    memory: Tensor,
    index: Tensor,
    similarity: Tensor,
    lengths: Tensor,
    momentum: Tensor | float,
    changed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of a moved row that may be listed after the update, once: (row, column, S')."""
    b, place = (lists.columns[index] >= 0).nonzero().unbind(1)
    column = lists.columns[index[b], place].long()
    listed = torch.zeros(len(index), memory.shape[0], dtype=torch.bool, device=memory.device)
    listed[b, column] = True
    # Where ν <= α old error would grow: products.
    blends = ~changed[column] & (lengths[b] > momentum)
    blended = (momentum * lists.values[index[b], place] + (1 - momentum) * similarity[b, column]) / lengths[b]
    moved_floors = lists.floors[index]
    by_product = _may_rise(lists.floors, moved_floors, similarity, lengths, momentum) & ~listed & ~changed
    by_product[b[~blends], column[~blends]] = True
    by_product[:, index] = torch.ones(len(index), len(index), dtype=torch.bool, device=memory.device).tril()
    other, other_column = by_product.nonzero().unbind(1)
    products = (memory[index[other]] * memory[other_column]).sum(1)
    return (
        index[torch.cat([b[blends], other])],
        torch.cat([column[blends], other_column]),
        torch.cat([blended[blends], products]),
    )


def _may_rise(
    floors: Tensor, moved_floors: Tensor, similarity: Tensor, lengths: Tensor, momentum: Tensor | float
) -> Tensor:
    """Unlisted pairs [b, n] that the update may lift above one of their floors: that of the row that has moved, or that
    of the column."""
    if momentum == 1.0:  # a row that was not of length 1 has moved without its feature: s tells nothing
        return ((lengths - 1).abs() > SLACK)[:, None].expand_as(similarity)
    gain, slack = ((lengths - momentum) / (1 - momentum))[:, None], SLACK / (1 - momentum)
    return (similarity > moved_floors[:, None] * gain - slack) | (similarity > floors[None, :] * gain - slack)
