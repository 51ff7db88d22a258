"""Rank metrics at the size of Market-1501's test split: the compiled form, the numpy form, and an argsort a query."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from snnet.retrieval import rank_metrics as evaluation
from snnet.retrieval.rank_metrics import RankMetrics, rank_metrics

from ..case import Inputs, Unavailable, around, cluster_centers
from ..equality import require
from ..operation import Operation, called
from ..shapes import Shape, fixed

PART = 210  # queries of the gate: a sixteenth
DIM, CAMERAS = 32, 6


class Split(NamedTuple):
    """How many images a test split has."""

    queries: int
    gallery: int
    identities: int
    junk: int  # of pid -1
    distractors: int  # of pid 0


SPLITS = {"market-gallery": Split(3368, 19732, 750, 3819, 2798), "tiny-gallery": Split(60, 400, 20, 60, 40)}


def of_split(name: str) -> list[Shape]:
    return [Shape(name, SPLITS[name].gallery, 0, SPLITS[name].queries)]


gallery_shapes = fixed({"cpu": of_split("market-gallery")}, tiny=of_split("tiny-gallery"))


class Queries(NamedTuple):
    """The arguments of rank_metrics; the queries are the batch."""

    similarity: np.ndarray
    query_pids: np.ndarray
    gallery_pids: np.ndarray
    query_cams: np.ndarray
    gallery_cams: np.ndarray

    def first(self, samples: int) -> Queries:
        """Every so many-th query."""
        part = np.arange(0, len(self.query_pids), max(1, len(self.query_pids) // samples))[:samples]
        of_queries = {name: getattr(self, name)[part] for name in ("similarity", "query_pids", "query_cams")}
        return self._replace(**of_queries)


class Gallery(Inputs):
    """Similarities of unit normal features in clusters, one an identity."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        rng, split = np.random.default_rng(0), SPLITS[shape.size]
        centers = cluster_centers(rng, split.identities, DIM)  # 0 is that of junk and distractors
        query_pids = rng.integers(1, len(centers), split.queries)
        others = np.repeat([-1, 0], [split.junk, split.distractors])
        known = rng.integers(1, len(centers), split.gallery - len(others))
        gallery_pids = np.concatenate([others, known])
        query_cams, gallery_cams = (rng.integers(1, CAMERAS + 1, len(p)) for p in (query_pids, gallery_pids))
        query, gallery = (
            around(rng, centers, np.maximum(pids, 0), 0.9) for pids in (query_pids, gallery_pids)
        )
        self.batches = [Queries(query @ gallery.T, query_pids, gallery_pids, query_cams, gallery_cams)]


def argsort_metrics(queries: Queries, average_precision: str = "step", max_rank: int = 50) -> RankMetrics:
    """The usual form: sort the gallery for each query, then cumulative sums along the sorted list."""
    cmc, precisions, inverse_penalties = np.zeros(max_rank), [], []
    for row, pid, camera in zip(queries.similarity, queries.query_pids, queries.query_cams, strict=True):
        order = np.argsort(-row)
        pids = queries.gallery_pids[order]
        keep = (pids != -1) & ((pids != pid) | (queries.gallery_cams[order] != camera))
        match = pids[keep] == pid
        if not match.any():
            continue
        found = np.cumsum(match)
        ranks = np.flatnonzero(match) + 1
        cmc += np.pad(found[:max_rank] > 0, (0, max(0, max_rank - len(found))), mode="edge")
        precision = found / np.arange(1, len(match) + 1)
        if average_precision == "trapezoid":
            precision = (np.concatenate([[1.0], precision[:-1]]) + precision) / 2
        precisions.append(precision[match].mean())
        inverse_penalties.append(len(ranks) / ranks[-1])
    return RankMetrics(
        cmc=cmc / len(precisions),
        mAP=float(np.mean(precisions)),
        mINP=float(np.mean(inverse_penalties)),
        num_queries=len(precisions),
        num_without_match=len(queries.query_pids) - len(precisions),
        average_precision=average_precision,
    )


def gate(case: Gallery, batch: Queries, form: Any) -> None:
    """``form`` is what was called: it is tried in both definitions on a part of the queries."""
    part = batch.first(PART)
    for definition in ("step", "trapezoid"):
        got, expected = form(part, definition), argsort_metrics(part, definition)
        values, wanted = (np.array([*each.cmc, each.mAP, each.mINP]) for each in (got, expected))
        counts, known = ((each.num_queries, each.num_without_match) for each in (got, expected))
        apart = np.abs(values - wanted).max()
        require(apart <= 1e-12, f"{definition}: metrics off by {apart:.3g}")
        require(counts == known, f"{definition}: {counts} queries, not {known}")
        require(0.2 < got.mAP < 0.95, f"mAP {got.mAP:.2f}: these inputs are too easy or too hard")


def compiled_form(batch: Queries, definition: str = "step") -> RankMetrics:
    return rank_metrics(*batch, average_precision=definition)


def numpy_form(batch: Queries, definition: str = "step") -> RankMetrics:
    with mock.patch.object(evaluation, "_native", None):
        return compiled_form(batch, definition)


def ours(case: Gallery) -> Any:
    if evaluation._native is None:
        raise Unavailable("snnet._rank_metrics is not built")
    return compiled_form


title = "CMC, mAP and mINP"
ranks = Operation("rank-metrics", title, gate, called, make_case=Gallery, shapes=gallery_shapes)
OPERATIONS = (ranks,)
ranks.contender("snnet", ours)
ranks.contender("numpy", lambda case: numpy_form)
ranks.contender("argsort", lambda case: argsort_metrics)
