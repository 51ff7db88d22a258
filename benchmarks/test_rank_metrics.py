"""Rank metrics at the size of Market-1501: the compiled form, the numpy form, and an argsort per query.

``pytest benchmarks/test_rank_metrics.py``. The forms are first checked to agree.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from snnet import evaluation
from snnet.evaluation import RankMetrics, rank_metrics

QUERIES, GALLERY, IDENTITIES, CAMERAS = 3368, 19732, 750, 6
JUNK, DISTRACTORS = 3819, 2798  # gallery images of pid -1 and of pid 0
PEAK_BYTES = 100e6

needs_compiled = pytest.mark.skipif(evaluation._native is None, reason="snnet._rank_metrics is not built")


def argsort_metrics(
    similarity, query_pids, gallery_pids, query_cams, gallery_cams, average_precision="step", max_rank=50
) -> RankMetrics:
    """The usual form: sort the gallery for each query, then cumulative sums along the sorted list."""
    cmc, precisions, inverse_penalties = np.zeros(max_rank), [], []
    for row, pid, camera in zip(similarity, query_pids, query_cams, strict=True):
        order = np.argsort(-row, kind="stable")
        pids = gallery_pids[order]
        keep = (pids != -1) & ((pids != pid) | (gallery_cams[order] != camera))
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
        num_without_match=len(query_pids) - len(precisions),
        average_precision=average_precision,
    )


def market_case():
    """Similarities of unit normal features in clusters, one an identity, with the numbers of the test split."""
    rng = np.random.default_rng(0)
    dim = 32
    centers = rng.standard_normal((IDENTITIES + 1, dim), dtype=np.float32)

    def features(pids):
        noise = rng.standard_normal((len(pids), dim), dtype=np.float32)
        drawn = np.where(pids[:, None] > 0, centers[pids] + 0.9 * noise, 1.3 * noise)
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    query_pids = rng.integers(1, IDENTITIES + 1, QUERIES)
    gallery_pids = np.concatenate(
        [
            np.full(JUNK, -1),
            np.zeros(DISTRACTORS, dtype=np.int64),
            rng.integers(1, IDENTITIES + 1, GALLERY - JUNK - DISTRACTORS),
        ]
    )
    query_cams, gallery_cams = rng.integers(1, CAMERAS + 1, QUERIES), rng.integers(1, CAMERAS + 1, GALLERY)
    similarity = features(query_pids) @ features(gallery_pids).T
    return similarity, query_pids, gallery_pids, query_cams, gallery_cams


@pytest.fixture(scope="module")
def market():
    return market_case()


@pytest.fixture(params=["compiled", "numpy", "argsort"])
def form(request, monkeypatch):
    if request.param == "argsort":
        return argsort_metrics
    if request.param == "numpy":
        monkeypatch.setattr(evaluation, "_native", None)
    elif evaluation._native is None:
        pytest.skip("snnet._rank_metrics is not built")
    return rank_metrics


def every_eighth_query(market):
    similarity, query_pids, gallery_pids, query_cams, gallery_cams = market
    return similarity[::8], query_pids[::8], gallery_pids, query_cams[::8], gallery_cams


def check(form, market):
    part = every_eighth_query(market)
    for definition in ("step", "trapezoid"):
        got = form(*part, average_precision=definition)
        expected = argsort_metrics(*part, average_precision=definition)
        np.testing.assert_allclose(got.cmc, expected.cmc, rtol=0, atol=1e-12)
        np.testing.assert_allclose([got.mAP, got.mINP], [expected.mAP, expected.mINP], rtol=0, atol=1e-12)
        assert 0.2 < got.mAP < 0.9
        assert (got.num_queries, got.num_without_match) == (expected.num_queries, expected.num_without_match)


def test_market_size(form, market, benchmark):
    if form is not argsort_metrics:
        check(form, market)
    rounds = 1 if form is argsort_metrics else 5
    benchmark.pedantic(form, args=market, rounds=rounds, warmup_rounds=rounds - 1 and 1)


@needs_compiled
def test_a_tenth_of_the_time_of_argsort(market):
    def seconds(function, case):
        start = time.perf_counter()
        function(*case)
        return time.perf_counter() - start

    rank_metrics(*market)
    compiled = min(seconds(rank_metrics, market) for _ in range(5))
    argsort = 8 * seconds(argsort_metrics, every_eighth_query(market))
    print(
        f"\ncompiled {compiled * 1e3:.0f} ms, argsort per query {argsort:.2f} s: {argsort / compiled:.0f} times"
    )
    assert compiled <= argsort / 10


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def peak_beyond_input(form: str, dtype: str) -> int:
    if form == "numpy":
        evaluation._native = None
    similarity, *ids = market_case()
    similarity = similarity.astype(dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from the present size
    before = resident_bytes("VmRSS")
    rank_metrics(similarity, *ids)
    return resident_bytes("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", [pytest.param("compiled", marks=needs_compiled), "numpy"])
def test_peak_memory(form, dtype, monkeypatch):
    # In a process of its own that gives freed memory back: else what is taken could be what was left over.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        extra = pool.apply(peak_beyond_input, (form, dtype))
    print(f"\npeak beyond the input: {extra / 1e6:.1f} MB")
    assert 0 < extra <= PEAK_BYTES
