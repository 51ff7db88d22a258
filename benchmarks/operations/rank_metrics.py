"""Rank metrics at the size of Market-1501's test split: the compiled form, the numpy form, and an argsort a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from snnet.retrieval import rank_metrics as evaluation
from snnet.retrieval.rank_metrics import RankMetrics, rank_metrics

from ..case import Inputs, Unavailable
from ..equality import Unequal
from ..operation import Operation
from ..shapes import Shape

ARGSORT_QUERIES = 210  # a sixteenth
DIM = 32


class Split(NamedTuple):
    """How many images a test split has."""

    queries: int
    gallery: int
    identities: int
    junk: int  # of pid -1
    distractors: int  # of pid 0
    cameras: int = 6


SPLITS = {"market-gallery": Split(3368, 19732, 750, 3819, 2798), "tiny-gallery": Split(60, 400, 20, 60, 40)}


def gallery_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    name = "tiny-gallery" if list(sizes) == ["tiny"] else "market-gallery"
    return [Shape(name, SPLITS[name].gallery, 0, SPLITS[name].queries)] if device == "cpu" else []


class Queries(NamedTuple):
    """The arguments of rank_metrics; the queries are the batch."""

    similarity: np.ndarray
    query_pids: np.ndarray
    gallery_pids: np.ndarray
    query_cams: np.ndarray
    gallery_cams: np.ndarray

    @property
    def size(self) -> int:
        return len(self.query_pids)

    def first(self, samples: int) -> Queries:
        """Every so many-th query."""
        step = slice(None, None, max(1, self.size // samples))
        similarity, query_pids, query_cams = (
            self.similarity[step],
            self.query_pids[step],
            self.query_cams[step],
        )
        return Queries(similarity, query_pids, self.gallery_pids, query_cams, self.gallery_cams)


class Gallery(Inputs):
    """Similarities of unit normal features in clusters, one an identity."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        self.batches = [self._draw(SPLITS[shape.size])] * 2

    def _draw(self, split: Split) -> Queries:
        rng = np.random.default_rng(0)
        centers = rng.standard_normal((split.identities + 1, DIM), dtype=np.float32)

        def features(pids: np.ndarray) -> np.ndarray:
            noise = rng.standard_normal((len(pids), DIM), dtype=np.float32)
            drawn = np.where(pids[:, None] > 0, centers[pids] + 0.9 * noise, 1.3 * noise)
            return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

        matches = split.gallery - split.junk - split.distractors
        query_pids = rng.integers(1, split.identities + 1, split.queries)
        known = rng.integers(1, split.identities + 1, matches)
        gallery_pids = np.concatenate(
            [np.full(split.junk, -1), np.zeros(split.distractors, dtype=np.int64), known]
        )
        query_cams = rng.integers(1, split.cameras + 1, split.queries)
        gallery_cams = rng.integers(1, split.cameras + 1, split.gallery)
        similarity = features(query_pids) @ features(gallery_pids).T
        return Queries(similarity, query_pids, gallery_pids, query_cams, gallery_cams)


def argsort_metrics(queries: Queries, average_precision: str = "step", max_rank: int = 50) -> RankMetrics:
    """The usual form: sort the gallery for each query, then cumulative sums along the sorted list."""
    cmc, precisions, inverse_penalties = np.zeros(max_rank), [], []
    rows = zip(queries.similarity, queries.query_pids, queries.query_cams, strict=True)
    for row, pid, camera in rows:
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
        num_without_match=queries.size - len(precisions),
        average_precision=average_precision,
    )


def gate(case: Gallery, batch: Queries, form: Any) -> None:
    """``form`` is what was called: it is tried in both definitions on a part of the queries."""
    part = batch.first(ARGSORT_QUERIES)
    for definition in ("step", "trapezoid"):
        got, expected = form(part, definition), argsort_metrics(part, definition)
        apart = max(
            float(np.abs(got.cmc - expected.cmc).max()),
            abs(got.mAP - expected.mAP),
            abs(got.mINP - expected.mINP),
        )
        counts = (got.num_queries, got.num_without_match)
        if not apart <= 1e-12 or counts != (expected.num_queries, expected.num_without_match):
            raise Unequal(
                f"{definition}: metrics off by {apart:.3g}, {counts} queries with and without a match"
            )
        if not 0.2 < got.mAP < 0.95:
            raise Unequal(f"mAP {got.mAP:.2f}: these inputs are too easy or too hard")


ranks = Operation(
    "rank-metrics",
    "CMC, mAP and mINP",
    gate,
    uses_features=False,
    make_case=Gallery,
    own_shapes=gallery_shapes,
)


def answering(form: Callable[..., Any]) -> Callable[[Any], Any]:
    """Calls ``form``, and hands it to the gate."""

    def run(batch: Any) -> Any:
        form(batch)
        return form

    return run


def form(batch: Queries, definition: str = "step") -> RankMetrics:
    return rank_metrics(*batch, average_precision=definition)


def numpy_form(batch: Queries, definition: str = "step") -> RankMetrics:
    native, evaluation._native = evaluation._native, None
    try:
        return form(batch, definition)
    finally:
        evaluation._native = native


@ranks.contender("snnet", devices=("cpu",))
def compiled(case: Gallery) -> Any:
    if evaluation._native is None:
        raise Unavailable("snnet._rank_metrics is not built")
    return answering(form)


ranks.contender("numpy", devices=("cpu",))(lambda case: answering(numpy_form))
ranks.contender("argsort", devices=("cpu",), samples=ARGSORT_QUERIES)(lambda case: answering(argsort_metrics))
