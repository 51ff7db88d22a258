"""Which queries and matches a report shows, and what it says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnet.config.options import AveragePrecision
from snnet.data import ImageSet
from snnet.retrieval.features import PAIRS_AT_A_TIME, Identities
from snnet.retrieval.rank_metrics import QueryScores, have_match, score_queries
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
class RankedGallery:
    """The gallery ranked for every query of a checkpoint: lists to show, and means for each camera."""

    sample: Sequence[RankedList]
    failures: Sequence[RankedList]
    failed: int  # queries whose first rank is wrong
    counted: int  # queries with a match
    cameras: Sequence[tuple[int, int, float, float]]  # camera, its queries, their rank-1 and mAP


def rank_lists(
    query: Tensor,  # [q, d]
    gallery: Tensor,  # [g, d]
    identities: Identities,
    average_precision: AveragePrecision,
    *,
    lists: int,
    length: int,
) -> RankedGallery:
    """A sample of the queries, evenly spread over their order, and those whose first right match comes last.

    ``lists`` of each at most, each with the first ``length`` images of its ranking.
    """
    counted = np.flatnonzero(have_match(*identities.arrays()))
    places = np.linspace(0, len(counted) - 1, min(lists, len(counted))).round().astype(np.int64)
    sample = counted[np.unique(places)]
    found: dict[int, RankedList] = {}
    parts = []
    step = max(1, PAIRS_AT_A_TIME // len(gallery))
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        similarity = float32_similarity(query[rows], gallery).cpu().numpy()
        part = score_queries(similarity, *identities.select(rows).arrays(), average_precision)
        parts.append(part)
        # Lists come from the similarities that were just ranked: a second product would round differently, and nearly
        # equal images would change places.
        sampled = sample[(sample >= start) & (sample < start + len(similarity))]
        for row in {*(start + _failures(part)[:lists]).tolist(), *sampled.tolist()}:
            found[row] = _ranked_list(row, row - start, similarity, part, identities, length)
    scores = QueryScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    failures = _failures(scores)
    return RankedGallery(
        sample=[found[row] for row in sample.tolist()],
        failures=[found[row] for row in failures[:lists].tolist()],
        failed=len(failures),
        counted=len(counted),
        cameras=_by_camera(identities.query_cams[counted], counted, scores),
    )


def _failures(scores: QueryScores) -> np.ndarray:
    """The queries whose first rank is wrong: the one whose first match comes last is the first."""
    failed = np.flatnonzero(scores.first_rank > 1)  # it is 0 where there is no match
    order = np.lexsort((failed, scores.average_precision[failed], -scores.first_rank[failed]))
    return failed[order]


def _ranked_list(
    row: int,
    place: int,  # of the query in its block
    block: np.ndarray,  # float32 [queries, g], similarities
    scores: QueryScores,  # of the block
    identities: Identities,
    length: int,
) -> RankedList:
    pid, camera = identities.query_pids[row], identities.query_cams[row]
    own = (identities.gallery_pids == pid) & (identities.gallery_cams == camera)
    similarity = block[place]
    order = np.argsort(-similarity, kind="stable")
    order = order[~own[order] & (identities.gallery_pids[order] != -1)]

    def shown(rank: int) -> Shown:
        image = int(order[rank - 1])
        return Shown(image, float(similarity[image]), rank, bool(identities.gallery_pids[image] == pid))

    first = int(scores.first_rank[place])
    return RankedList(
        image=row,
        shown=[shown(rank) for rank in range(1, min(length, len(order)) + 1)],
        first_match=shown(first) if first > length else None,
        average_precision=float(scores.average_precision[place]),
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
    images: ImageSet,
    *,
    lists: int,
    length: int,
) -> list[RankedList]:
    """Training images, evenly spread over their order, with their nearest others in the exemplar memory.

    Which of these are its positives is read from the label memory.
    """
    n, pids = len(images), images.pids
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
    """Whether any image has another as positive: in the warm-up the label memory is the identity."""
    for first in range(0, labels.num_instances, 1024):
        row, column = labels.pairs(first, first + 1024)
        if bool((row != column).any()):
            return True
    return False
