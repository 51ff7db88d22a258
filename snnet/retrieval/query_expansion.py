"""Query expansion: features drawn towards those of their neighbours before ranking (Chum et al., ICCV 2007)."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import normalize

from snnet.checks import check_query_and_gallery, positive
from snnet.errors import UserError
from snnet_kernels import neighbor_lists
from snnet_kernels.precision import exact_float32

NEIGHBORS, POWER = 10, 3.0
FLOATS = 2**25  # of the neighbours' features that are held at a time


def expand_queries(
    query: Tensor,  # float32 [q, d], rows of norm 1
    gallery: Tensor,  # float32 [g, d], rows of norm 1
    neighbors: int = NEIGHBORS,
    power: float = POWER,
) -> tuple[Tensor, Tensor]:
    """Weighted sums of each image's nearest among queries and gallery, normalised: float32 [q, d] and [g, d].

    ``f'_i = normalize(Σ_j s_ij^power f_j)`` over the ``neighbors`` images of the largest similarity s, the image itself
    among them, equal ones by lower index; a similarity below 0 counts as 0. That is fast-reid's ``aqe`` with
    ``qe_k=neighbors``, ``alpha=power`` and the Radenović et al. weights; ``power=0`` is the plain mean.

    Raises:
        UserError: an argument of a wrong shape, dtype or value.
    """
    positive(neighbors, "neighbors")
    if isinstance(power, bool) or not isinstance(power, Real) or not 0 <= power < math.inf:
        raise UserError(f"power must be a number of at least 0, and finite, got {power!r}")
    check_query_and_gallery(query, gallery, "query expansion compares directions", torch.float32)
    features = torch.cat([query, gallery])
    lists = neighbor_lists(features, neighbors)
    weights = lists.values.clamp(min=0) ** power
    rows_at_a_time = max(1, FLOATS // (lists.columns.shape[1] * features.shape[1]))
    with exact_float32(features.device):
        parts = [
            torch.einsum("nk,nkd->nd", weights[rows], features[lists.columns[rows].long()])
            for rows in torch.arange(len(features), device=features.device).split(rows_at_a_time)
        ]
    expanded = normalize(torch.cat(parts), dim=1)
    return expanded[: len(query)], expanded[len(query) :]
