"""Verification: whether two images show one person, by a threshold on their similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from snnet.checks import check_query_and_gallery
from snnet.errors import UserError
from snnet.retrieval.rank_metrics import checked_identities, have_match
from snnet_kernels.ops.similarity import float32_similarity

RATES = (1e-4, 1e-3, 1e-2)
PAIRS_AT_A_TIME = 1 << 24


def true_positive_rates(
    query: Tensor,  # float32 [q, d], rows of norm 1
    gallery: Tensor,  # float32 [g, d], rows of norm 1
    query_pids: np.ndarray,  # int64 [q]
    gallery_pids: np.ndarray,  # int64 [g]
    query_cams: np.ndarray,  # int64 [q]
    gallery_cams: np.ndarray,  # int64 [g]
    rates: Sequence[float] = RATES,
) -> dict[float, float]:
    """The share of true pairs accepted where at most the share ``rate`` of false ones is accepted: TPR at each FPR.

    The pairs are those that ranking counts: of queries that have a match, with gallery images that are not of pid -1
    (junk), and not of one identity and one camera. A pair is accepted above a threshold. The threshold of a rate is the
    lowest that keeps to it.

    Raises:
        UserError: features that do not fit together, a row that is not of norm 1, identities or cameras of another
            number or dtype, no true or no false pair, or a rate outside of [0, 1).
    """
    if not all(0 <= rate < 1 for rate in rates):
        raise UserError(f"rates must be from 0 to below 1, got {list(rates)}")
    check_query_and_gallery(query, gallery, "ranking compares directions")
    query_pids, gallery_pids, query_cams, gallery_cams = checked_identities(
        query_pids, gallery_pids, query_cams, gallery_cams, len(query), len(gallery)
    )
    false = false_pairs(query_pids, gallery_pids, query_cams, gallery_cams)
    kept = np.flatnonzero(gallery_pids != -1)
    asked = np.flatnonzero(have_match(query_pids, gallery_pids, query_cams, gallery_cams))
    query, query_pids, query_cams = query[asked.tolist()], query_pids[asked], query_cams[asked]
    gallery, gallery_pids, gallery_cams = gallery[kept.tolist()], gallery_pids[kept], gallery_cams[kept]
    allowed = [int(rate * false) for rate in rates]
    most = max(allowed, default=0) + 1
    genuine: list[np.ndarray] = []
    highest = np.empty(0, np.float32)  # similarities of the false pairs
    step = max(1, PAIRS_AT_A_TIME // max(len(kept), 1))
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        similarity = float32_similarity(query[rows], gallery).cpu().numpy()
        same = query_pids[rows, None] == gallery_pids
        genuine.append(similarity[same & (query_cams[rows, None] != gallery_cams)])
        highest = np.concatenate([highest, similarity[~same]])
        if len(highest) > most:
            highest = np.partition(highest, len(highest) - most)[len(highest) - most :]
    found = np.concatenate(genuine)
    highest = np.sort(highest)[::-1]
    return {rate: float((found > highest[count]).mean()) for rate, count in zip(rates, allowed, strict=True)}


def false_pairs(
    query_pids: np.ndarray, gallery_pids: np.ndarray, query_cams: np.ndarray, gallery_cams: np.ndarray
) -> int:
    """How many of the pairs of :func:`true_positive_rates` are of two identities.

    Raises :class:`~snnet.errors.UserError` where none is, or none is true.
    """
    ranked = gallery_pids[gallery_pids != -1]
    asked = query_pids[have_match(query_pids, gallery_pids, query_cams, gallery_cams)]
    count = sum(int((ranked != pid).sum()) for pid in asked)
    if count == 0:
        raise UserError("a ROC needs pairs of one identity in two cameras, and pairs of two identities")
    return count
