"""Jaccard distances of k-reciprocal neighbours, by tiles of rows: [TILE, n] at a time, and n × n never.

A sparse matrix is (indptr int64 [n + 1], indices int32 [entries], values float32 [entries]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..precision import matmul

TILE = 256  # rows at once

Sparse = tuple[Tensor, Tensor, Tensor]


def jaccard_pairs(
    features: Tensor,  # float32 [n, d]
    nearest: Tensor,  # int32 [n, c]
    more: Tensor | None,  # int32 [n, e]
    half: int,
    largest: Tensor | None,  # float32 [n]
    averaged: Tensor | None,  # int32 [n, k]
    max_distance: float,
) -> Sparse:
    """The pairs of images that share something and whose Jaccard distance is at most ``max_distance``."""
    weights = _weights(features, nearest, more, half, largest, averaged)
    parts = [
        _nonzero((overlap > 0) & (_jaccard(overlap) <= max_distance), _jaccard(overlap))
        for overlap in _overlaps(weights, 0, len(nearest))
    ]
    return _joined(parts, features)


def blend_jaccard_(
    similarity: Tensor,  # float32 [q, n - q], overwritten
    features: Tensor,
    nearest: Tensor,
    half: int,
    largest: Tensor,
    averaged: Tensor | None,
    original_weight: float,
) -> None:
    """(1 - λ) Jaccard distance + λ original distance of the first q images with the others."""
    weights = _weights(features, nearest, None, half, largest, averaged)
    queries = len(similarity)
    done = 0
    for overlap in _overlaps(weights, queries, queries):
        rows = slice(done, done + len(overlap))
        of_row = largest[rows, None]
        original = torch.where(of_row > 0, (2 - 2 * similarity[rows]) / of_row, 0.0)
        similarity[rows] = (1 - original_weight) * _jaccard(overlap) + original_weight * original
        done += len(overlap)


def _weights(
    features: Tensor,
    nearest: Tensor,
    more: Tensor | None,
    half: int,
    largest: Tensor | None,
    averaged: Tensor | None,
) -> Sparse:
    weights = _reciprocal_weights(features, nearest, more, half, largest)
    return weights if averaged is None else _expand_query(*weights, averaged)


def _reciprocal_weights(
    features: Tensor, nearest: Tensor, more: Tensor | None, half: int, largest: Tensor | None
) -> Sparse:
    """V: of each image the weights of its expanded reciprocal neighbours, which sum to 1."""
    reciprocal = _reciprocal(nearest)
    halves = nearest[:, :half].long()
    in_half = _reciprocal(nearest[:, :half])
    also = None if more is None else _reciprocal(more)

    def weights_of(rows: Tensor) -> Tensor:
        own = _members(nearest[rows], reciprocal[rows], len(nearest))
        members = own.clone()
        for place in range(nearest.shape[1] if half else 0):
            other = nearest[rows, place].long()
            candidates, counted = halves[other], in_half[other]
            shared = (own.gather(1, candidates) & counted).sum(1)
            joins = reciprocal[rows, place] & (3 * shared > 2 * counted.sum(1))
            members |= _members(candidates, counted & joins[:, None], len(nearest))
        if more is not None and also is not None:
            members |= _members(more[rows], also[rows], len(nearest))
        distance = 2 - 2 * matmul(features[rows], features.t())
        if largest is not None:
            of_row = largest[rows, None]
            distance = torch.where(of_row > 0, distance / of_row, 0.0)
        weights = torch.where(members, (-distance.double()).exp(), 0.0)
        return (weights / weights.sum(1, keepdim=True)).nan_to_num().float()

    return _sparse(weights_of, len(nearest), features)


def _reciprocal(nearest: Tensor) -> Tensor:
    """Which of the neighbours [n, c] have the image among theirs: bool [n, c]."""
    image = torch.arange(len(nearest), device=nearest.device)
    parts = [
        (nearest[nearest[rows].long()] == rows[:, None, None]).any(2) for rows in image.split(TILE)
    ]  # [TILE, c, c] at once
    return torch.cat(parts) if parts else torch.zeros_like(nearest, dtype=torch.bool)


def _members(columns: Tensor, chosen: Tensor, n: int) -> Tensor:
    """Bits [rows, n] of the chosen ones of ``columns`` [rows, c]."""
    bits = torch.zeros(len(columns), n, dtype=torch.bool, device=columns.device)
    row, place = chosen.nonzero().unbind(1)
    bits[row, columns[row, place].long()] = True
    return bits


def _expand_query(indptr: Tensor, indices: Tensor, values: Tensor, nearest: Tensor) -> Sparse:
    """Each row as the mean of the rows of its ``nearest``, int32 [n, k]."""
    n, k = nearest.shape

    def means_of(rows: Tensor) -> Tensor:
        sums = values.new_zeros(len(rows), n)
        for place in range(k):
            row, entry = _entries(indptr, nearest[rows, place].long())
            sums.index_put_((row, indices[entry].long()), values[entry], accumulate=True)
        return sums / k

    return _sparse(means_of, n, values)


def _entries(indptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of ``rows``: for each the position of its row, and where it lies."""
    start, count = indptr[rows], indptr[rows + 1] - indptr[rows]
    position = torch.arange(len(rows), device=rows.device).repeat_interleave(count)
    before = count.cumsum(0) - count
    return position, torch.arange(len(position), device=rows.device) - before[position] + start[position]


def _overlaps(weights: Sparse, first: int, count: int) -> Iterator[Tensor]:
    """The overlaps of the rows below ``count`` with those from ``first`` on, tile by tile: [TILE, n - first]."""
    indptr, indices, values = weights
    n = len(indptr) - 1
    begin = int(indptr[first]) if len(indptr) else 0
    rows = torch.arange(n, device=values.device).repeat_interleave(indptr.diff())[begin:] - first
    order = indices[begin:].sort(stable=True).indices
    rows, others = rows[order], values[begin:][order]
    starts = torch.zeros(n + 1, dtype=torch.int64, device=values.device)
    starts[1:] = torch.bincount(indices[begin:], minlength=n).cumsum(0)
    for tile in torch.arange(count, device=values.device).split(TILE):
        overlap = values.new_zeros(len(tile), n - first)
        position, entry = _entries(indptr, tile)
        shared, place = _entries(starts, indices[entry].long())
        smaller = torch.minimum(others[place], values[entry[shared]])
        overlap.index_put_((position[shared], rows[place]), smaller, accumulate=True)
        yield overlap


def _jaccard(overlap: Tensor) -> Tensor:
    """Rows sum to 1: the sum of the smaller values is the overlap, that of the larger ones 2 less it."""
    return (1 - overlap / (2 - overlap)).clamp(min=0)


def _sparse(rows_of: Callable[[Tensor], Tensor], n: int, like: Tensor) -> Sparse:
    """The entries other than 0 of the matrix whose rows ``rows_of`` gives."""
    dense = (rows_of(rows) for rows in torch.arange(n, device=like.device).split(TILE) if len(rows))
    return _joined([_nonzero(tile != 0, tile) for tile in dense], like)


def _nonzero(chosen: Tensor, values: Tensor) -> Sparse:
    """Counts of the chosen entries of each row, their columns, and their values."""
    return chosen.sum(1), chosen.nonzero()[:, 1].to(torch.int32), values[chosen]


def _joined(parts: list[Sparse], like: Tensor) -> Sparse:
    none = like.new_zeros(0)
    counts, indices, values = zip(*parts, (none.long(), none.to(torch.int32), none), strict=True)
    indptr = torch.cat([none.new_zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    return indptr, torch.cat(indices), torch.cat(values)
