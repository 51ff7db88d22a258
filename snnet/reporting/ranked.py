"""Which queries and matches a report shows, and what it says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snnet.data import DecodedImages
from snnet.retrieval.features import PAIRS_AT_A_TIME, RetrievalSet
from snnet.retrieval.rank_metrics import QueryScores, score_queries
from snnet_kernels import PseudoLabelMemory, unpack_labels
from snnet_kernels.ops.similarity import float32_similarity


@dataclass(frozen=True)
class Shown:
    """An image of a list."""

    image: int  # its place in its split
    similarity: float  # cosine with the list's first image
    rank: int  # from 1
    right: bool | None = None  # of the first image's identity; None where that is not known
    labelled: bool | None = None  # a positive of the first image in the label memory; None for a query's list


@dataclass(frozen=True)
class RankedList:
    """A query (or a training image), and the images most like it by falling similarity."""

    image: int  # its place in its split
    shown: Sequence[Shown]  # the first of the ranking
    first_match: Shown | None = None  # the right image of the best rank, where that is not among those shown
    average_precision: float | None = None  # of the whole ranking, 0 to 1; None for a training image


@dataclass(frozen=True, eq=False)
class Retrieval:
    """The gallery ranked for every query of a checkpoint: lists to show, and means for each camera."""

    sample: Sequence[RankedList]
    failures: Sequence[RankedList]
    failed: int  # queries whose first rank is wrong
    counted: int  # queries with a match
    cameras: Sequence[tuple[int, int, float, float]]  # camera, its queries, their rank-1 and mAP


def rank_lists(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    retrieval: RetrievalSet,
    average_precision: Literal["step", "trapezoid"],
    *,
    lists: int,
    length: int,
) -> Retrieval:
    """A sample of the queries, evenly spread over their order, and those whose first right match comes last.

    ``lists`` of each at most, each with the first ``length`` images of its ranking.
    """
    scores = _score(query, gallery, retrieval, average_precision)
    counted = np.flatnonzero(scores.matches > 0)
    places = np.unique(np.linspace(0, len(counted) - 1, min(lists, len(counted))).round().astype(np.int64))
    failed = counted[scores.first_rank[counted] > 1]
    order = np.lexsort((failed, scores.average_precision[failed], -scores.first_rank[failed]))

    def show(rows: np.ndarray) -> list[RankedList]:
        return [_ranked_list(int(row), query, gallery, retrieval, scores, length) for row in rows]

    return Retrieval(
        sample=show(counted[places]) if len(counted) else [],
        failures=show(failed[order][:lists]),
        failed=len(failed),
        counted=len(counted),
        cameras=_by_camera(retrieval.query_cams[counted], counted, scores),
    )


def _score(
    query: Tensor, gallery: Tensor, retrieval: RetrievalSet, average_precision: Literal["step", "trapezoid"]
) -> QueryScores:
    step = max(1, PAIRS_AT_A_TIME // len(gallery))
    parts = [
        score_queries(
            float32_similarity(query[start : start + step], gallery).cpu().numpy(),
            retrieval.query_pids[start : start + step],
            retrieval.gallery_pids,
            retrieval.query_cams[start : start + step],
            retrieval.gallery_cams,
            average_precision,
        )
        for start in range(0, len(query), step)
    ]
    return QueryScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _ranked_list(
    row: int, query: Tensor, gallery: Tensor, retrieval: RetrievalSet, scores: QueryScores, length: int
) -> RankedList:
    similarity = float32_similarity(query[row : row + 1], gallery)[0].cpu().numpy()
    pid, camera = retrieval.query_pids[row], retrieval.query_cams[row]
    own = (retrieval.gallery_pids == pid) & (retrieval.gallery_cams == camera)
    order = np.argsort(-similarity, kind="stable")
    order = order[~own[order] & (retrieval.gallery_pids[order] != -1)]

    def shown(rank: int) -> Shown:
        image = int(order[rank - 1])
        return Shown(image, float(similarity[image]), rank, bool(retrieval.gallery_pids[image] == pid))

    first = int(scores.first_rank[row])
    return RankedList(
        image=row,
        shown=[shown(rank) for rank in range(1, min(length, len(order)) + 1)],
        first_match=shown(first) if first > length else None,
        average_precision=float(scores.average_precision[row]),
    )


def _by_camera(
    cams: np.ndarray, counted: np.ndarray, scores: QueryScores
) -> list[tuple[int, int, float, float]]:
    rows = []
    for camera in np.unique(cams).tolist():
        queries = counted[cams == camera]
        rank1, precision = scores.first_rank[queries] == 1, scores.average_precision[queries]
        rows.append((camera, len(queries), float(rank1.mean()), float(precision.mean())))
    return rows


def label_lists(
    memory: Tensor,  # [n, d] of the exemplar memory
    labels: PseudoLabelMemory,
    images: DecodedImages,
    *,
    lists: int,
    length: int,
) -> list[RankedList]:
    """Training images, evenly spread over their order, with their nearest others in the exemplar memory.

    Which of these are its positives is read from the label memory.
    """
    n, pids = len(images), images.images.pids
    found = []
    for row in np.unique(np.linspace(0, n - 1, min(lists, n)).round().astype(np.int64)).tolist():
        similarity = float32_similarity(memory[row : row + 1], memory)[0].numpy()
        positive = unpack_labels(labels.rows(torch.tensor([row])), n)[0].numpy()
        order = np.argsort(-similarity, kind="stable")
        order = order[order != row][:length]
        shown = [
            Shown(
                image,
                float(similarity[image]),
                rank,
                None if pids is None else bool(pids[image] == pids[row] != -1),
                bool(positive[image]),
            )
            for rank, image in enumerate(order.tolist(), start=1)
        ]
        found.append(RankedList(row, shown))
    return found


def has_labels(labels: PseudoLabelMemory) -> bool:
    """Whether the label memory has been written: in the warm-up it is the identity."""
    for first in range(0, labels.num_instances, 1024):
        row, column = labels.pairs(first, first + 1024)
        if bool((row != column).any()):
            return True
    return False
