"""Rank metrics of both forms, compiled and numpy, against walks down the sorted list and numbers worked by hand."""

from __future__ import annotations

import threading
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnet.errors import UserError
from snnet.retrieval import rank_metrics as evaluation
from snnet.retrieval.rank_metrics import RankMetrics, rank_metrics, score_queries

COMPILED = evaluation._native
FORMS = [
    pytest.param("numpy"),
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(COMPILED is None, reason="snnet._rank_metrics is not built"),
    ),
]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Runs the test with either form behind rank_metrics."""
    monkeypatch.setattr(evaluation, "_native", COMPILED if request.param == "compiled" else None)
    return request.param


def walk(
    similarity, query_pids, gallery_pids, query_cams, gallery_cams, average_precision="step", max_rank=50
):
    """The definitions taken literally: sort each row, walk down it, keep score. None: no query has a match."""
    precisions, inverse_penalties, first_ranks = [], [], []
    for row, pid, camera in zip(np.asarray(similarity, np.float32), query_pids, query_cams, strict=True):
        order = sorted(range(len(row)), key=lambda image: (-row[image], image))
        ignored = {j for j in order if gallery_pids[j] == pid and gallery_cams[j] == camera}
        order = [j for j in order if gallery_pids[j] != -1 and j not in ignored]
        total = sum(gallery_pids[j] == pid for j in order)
        if total == 0:
            continue
        matches, old_recall, old_precision, score, ranks = 0, 0.0, 1.0, 0.0, []
        for rank, image in enumerate(order, start=1):
            is_match = gallery_pids[image] == pid
            matches += is_match
            recall, precision = matches / total, matches / rank
            if average_precision == "trapezoid":
                score += (recall - old_recall) * (old_precision + precision) / 2
            elif is_match:
                score += precision / total
            old_recall, old_precision = recall, precision
            if is_match:
                ranks.append(rank)
        precisions.append(score)
        inverse_penalties.append(total / ranks[-1])
        first_ranks.append(ranks[0])
    if not precisions:
        return None
    return RankMetrics(
        cmc=np.array([np.mean(np.array(first_ranks) <= rank) for rank in range(1, max_rank + 1)]),
        mAP=float(np.mean(precisions)),
        mINP=float(np.mean(inverse_penalties)),
        num_queries=len(precisions),
        num_without_match=len(query_pids) - len(precisions),
        average_precision=average_precision,
    )


def assert_equal(got, expected):
    np.testing.assert_allclose(got.cmc, expected.cmc, rtol=0, atol=1e-12)
    assert got.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert got.mINP == pytest.approx(expected.mINP, abs=1e-12)
    assert (got.num_queries, got.num_without_match, got.average_precision) == (
        expected.num_queries,
        expected.num_without_match,
        expected.average_precision,
    )


def assert_identical(got, expected):
    ours, theirs = asdict(got), asdict(expected)
    np.testing.assert_array_equal(ours.pop("cmc"), theirs.pop("cmc"))
    assert ours == theirs


def random_case(queries, gallery, identities, cameras=3, levels=None, seed=0):
    """Similarities (of so many levels, so with ties) and ids from -1 on, identities that nothing matches too."""
    rng = np.random.default_rng(seed)
    similarity = rng.standard_normal((queries, gallery)).astype(np.float32)
    if levels is not None:
        similarity = np.round(similarity * levels / 4).astype(np.float32)
    return (
        similarity,
        rng.integers(0, identities + 1, queries),
        rng.integers(-1, identities, gallery),
        rng.integers(0, cameras, queries),
        rng.integers(0, cameras, gallery),
    )


# Query 0 (pid 7, camera 1): without image 1 (pid and camera its own) and image 5 (pid -1) the list is images
# 3, 0*, 4, 2* (* a match): ranks 2 and 4. Query 1 (pid 8, camera 2): images 2 and 3 tie, gallery order decides,
# the list is 4*, 2, 3*, 0, 1: ranks 1 and 3. Query 2 (pid 9) has no match.
HAND = {
    "similarity": [
        [0.8, 0.99, 0.1, 0.9, 0.5, 0.95],
        [0.3, 0.2, 0.7, 0.7, 0.9, 0.95],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    ],
    "query_pids": [7, 8, 9],
    "gallery_pids": [7, 7, 7, 8, 8, -1],
    "query_cams": [1, 2, 1],
    "gallery_cams": [2, 1, 3, 1, 3, 1],
}


def test_numbers_worked_by_hand(form):
    step = rank_metrics(**HAND, max_rank=10)
    # (1/2 + 2/4) / 2 and (1/1 + 2/3) / 2
    assert step.mAP == pytest.approx((1 / 2 + 5 / 6) / 2, abs=1e-15)
    # matches / rank of the last: 2/4 and 2/3
    assert step.mINP == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-15)
    assert step.cmc.tolist() == [0.5] + [1.0] * 9
    assert (step.rank1, step.rank5, step.rank10) == (0.5, 1.0, 1.0)
    assert (step.num_queries, step.num_without_match) == (2, 1)

    trapezoid = rank_metrics(**HAND, average_precision="trapezoid", max_rank=10)
    # precision falls 1, 0, 1/2, 1/3, 2/4 and 1, 1, 1/2, 2/3 along the lists: a match adds half the sum of the
    # precisions before and at it, divided by the number of matches
    first = ((0 + 1 / 2) / 2 + (1 / 3 + 1 / 2) / 2) / 2
    second = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    assert trapezoid.mAP == pytest.approx((first + second) / 2, abs=1e-15)
    assert (trapezoid.mINP, trapezoid.cmc.tolist()) == (step.mINP, step.cmc.tolist())
    assert (step.average_precision, trapezoid.average_precision) == ("step", "trapezoid")


def test_the_walk_agrees_with_the_hand():
    assert walk(**HAND).mAP == pytest.approx(2 / 3, abs=1e-15)
    assert walk(**HAND, average_precision="trapezoid").mAP == pytest.approx((1 / 3 + 19 / 24) / 2, abs=1e-15)


small_cases = st.tuples(st.integers(1, 5), st.integers(1, 24)).flatmap(
    lambda shape: st.tuples(
        st.lists(
            st.sampled_from([0.0, -0.0, 0.25, 0.5, -1.0, 1.0, 1e-45, np.inf, -np.inf]),
            min_size=shape[0] * shape[1],
            max_size=shape[0] * shape[1],
        ).map(lambda values: np.array(values, dtype=np.float32).reshape(shape)),
        st.lists(st.integers(-1, 2), min_size=shape[0], max_size=shape[0]),
        st.lists(st.integers(-1, 2), min_size=shape[1], max_size=shape[1]),
        st.lists(st.integers(0, 2), min_size=shape[0], max_size=shape[0]),
        st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1]),
    )
)


@pytest.mark.parametrize("which", FORMS)
@given(case=small_cases, definition=st.sampled_from(["step", "trapezoid"]), max_rank=st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_small_cases_of_any_kind(which, case, definition, max_rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_native", COMPILED if which == "compiled" else None)
        expected = walk(*case, definition, max_rank)
        if expected is None:
            with pytest.raises(UserError, match="has a match"):
                rank_metrics(*case, definition, max_rank)
        else:
            assert_equal(rank_metrics(*case, definition, max_rank), expected)


# identities 40: up to a dozen matches a query, a full and a partial group of the passes; 2 and 1: hundreds, past
# the size where the compiled form changes to a search.
@pytest.mark.parametrize("identities", [40, 2, 1])
@pytest.mark.parametrize("levels", [None, 3, 0], ids=["distinct", "ties", "all-equal"])
def test_larger_galleries(form, identities, levels):
    case = random_case(12, 1200, identities, levels=levels)
    for definition in ("step", "trapezoid"):
        assert_equal(rank_metrics(*case, definition), walk(*case, definition))


@pytest.mark.skipif(COMPILED is None, reason="snnet._rank_metrics is not built")
@pytest.mark.parametrize("matches", [255, 256, 257])
def test_both_ways_of_counting_meet(matches):
    rng = np.random.default_rng(matches)
    similarity = rng.integers(-30, 30, (3, 900)).astype(np.float32)
    gallery_pids = rng.permutation((np.arange(900) < matches).astype(np.int64))
    case = (similarity, [1, 1, 1], gallery_pids, [0, 0, 0], np.ones(900, dtype=np.int64))
    assert_equal(rank_metrics(*case), walk(*case))


@pytest.mark.skipif(COMPILED is None, reason="snnet._rank_metrics is not built")
def test_the_forms_return_the_same_bits(monkeypatch):
    case = random_case(300, 5000, 60, levels=100)
    compiled = rank_metrics(*case)
    monkeypatch.setattr(evaluation, "_native", None)
    assert_identical(rank_metrics(*case), compiled)


def test_number_of_threads_changes_nothing(form):
    case = random_case(150, 4000, 50)
    one = rank_metrics(*case, threads=1)
    for threads in (2, 3, 64):
        assert_identical(rank_metrics(*case, threads=threads), one)


def test_blocks_change_nothing(form, monkeypatch):
    case = random_case(50, 300, 20)
    whole = rank_metrics(*case)
    for entries in (1, 7 * 300, 50 * 300 - 1):
        monkeypatch.setattr(evaluation, "_BLOCK_ENTRIES", entries)
        assert_identical(rank_metrics(*case), whole)


def test_concurrent_calls(form):
    case = random_case(60, 3000, 30)
    expected, results = rank_metrics(*case), []
    threads = [threading.Thread(target=lambda: results.append(rank_metrics(*case))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert_identical(result, expected)


def test_any_array_of_real_numbers(form):
    similarity, *ids = random_case(20, 200, 10, levels=50)
    expected = rank_metrics(similarity, *ids)
    padded = np.full((40, 600), np.nan, dtype=np.float32)
    padded[::2, 599::-3] = similarity
    read_only = similarity.copy()
    read_only.flags.writeable = False
    for other in (
        padded[::2, 599::-3],
        np.asfortranarray(similarity),
        read_only,
        similarity.astype(">f4"),
        similarity.astype(np.float64),
        similarity.astype(np.float16),
        similarity.astype(np.int32),
        similarity.tolist(),
        torch.from_numpy(similarity),
        torch.from_numpy(similarity).half().T.contiguous().T,
    ):
        assert_identical(rank_metrics(other, *ids), expected)
    tensors = [torch.from_numpy(values).to(torch.int32) for values in ids]
    assert_identical(rank_metrics(similarity, *tensors), expected)


def test_zero_is_an_ordinary_identity(form):
    result = rank_metrics([[0.5, 0.9, 0.1]], [0], [0, 1, -1], [1], [2, 2, 2])
    assert (result.mAP, result.rank1, result.rank5) == (0.5, 0.0, 1.0)


def test_gallery_smaller_than_max_rank(form):
    result = rank_metrics([[0.1, 0.9], [0.9, 0.1]], [1, 1], [1, 2], [1, 1], [2, 2], max_rank=5)
    assert result.cmc.tolist() == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_first_match_past_max_rank(form):
    result = rank_metrics([[0.1, 0.9, 0.8]], [1], [1, 2, 3], [1], [2, 2, 2], max_rank=2)
    assert (result.cmc.tolist(), result.mAP) == ([0.0, 0.0], pytest.approx(1 / 3))
    with pytest.raises(UserError, match="rank10 needs max_rank of at least 10, got 2"):
        _ = result.rank10


def test_nan_is_named(form, monkeypatch):
    similarity, *ids = random_case(30, 100, 10)
    similarity[17, 42] = similarity[20, 3] = np.nan
    for entries in (1 << 20, 500):
        monkeypatch.setattr(evaluation, "_BLOCK_ENTRIES", entries)
        with pytest.raises(UserError, match=r"similarity has NaN, first at query 17, gallery image 42"):
            rank_metrics(similarity, *ids)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (([1, 2], [1, 2, 2], [3, 3], [3, 3, 3]), r"all images are of one camera \(3\)"),
        (([1, 2], [1, 2, 2], [3, 4], [3, 4, 4]), "of that query's own camera"),
        (([1, 2], [5, 6, 7], [3, 4], [4, 3, 3]), "no identity of query_pids is in gallery_pids"),
        (([1, -1], [-1, -1, -1], [3, 4], [4, 3, 3]), "every gallery image has pid -1"),
    ],
)
def test_no_match_at_all_says_why(form, ids, why):
    with pytest.raises(UserError, match=f"none of the 2 queries has a match in the gallery: .*{why}"):
        rank_metrics(np.zeros((2, 3)), *ids)


@pytest.mark.parametrize("cameras", [([3, 3], [3, 3, 3]), ([3, 4], [3, 4, 4])])
def test_without_cameras_to_tell_apart_the_error_says_how_to_score(form, cameras):
    similarity, pids = np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.1]]), ([1, 2], [1, 2, 2])
    with pytest.raises(
        UserError,
        match=r"; to score without cameras give query_cams=None, on the command line --dataset custom with a "
        r"--name-pattern without \(\?P<cam>\.\.\.\)$",
    ):
        rank_metrics(similarity, *pids, *cameras)
    found = rank_metrics(similarity, *pids, None, None)
    assert (found.rank1, found.mAP) == (1.0, (1 + (1 + 2 / 3) / 2) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": np.zeros(6)}, r"similarity must be \[queries, gallery\], got shape \(6,\)"),
        ({"similarity": np.zeros((0, 6))}, "similarity has no rows"),
        ({"similarity": np.zeros((3, 0))}, "similarity has no columns"),
        (
            {"similarity": np.zeros((3, 6), dtype=complex)},
            "similarity must be of real numbers, got dtype complex",
        ),
        ({"similarity": [["a"] * 6] * 3}, "similarity must be of real numbers"),
        ({"similarity": [[1.0], [1.0, 2.0]]}, "similarity cannot be read as a numpy array"),
        ({"similarity": torch.zeros(3, 6, dtype=torch.bfloat16)}, "similarity cannot be read"),
        ({"similarity": torch.zeros(3, 6, requires_grad=True)}, "similarity cannot be read"),
        (
            {"query_pids": [7, 8]},
            r"query_pids must hold one number per query, shape \(3,\), got shape \(2,\)",
        ),
        ({"gallery_pids": [[1] * 6]}, r"gallery_pids .* shape \(6,\), got shape \(1, 6\)"),
        ({"query_cams": [1.0, 2.0, 1.0]}, "query_cams must be integers, got dtype float64"),
        ({"gallery_cams": 3}, r"gallery_cams .* got shape \(\)"),
        ({"average_precision": "area"}, "average_precision must be one of .*, got 'area'"),
        ({"max_rank": 0}, "max_rank must be an integer of at least 1, got 0"),
        ({"max_rank": 2.0}, "max_rank must be an integer of at least 1, got 2.0"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        rank_metrics(**{**HAND, **change})


def test_arguments_are_left_as_they_were(form):
    case = random_case(10, 80, 5)
    copies = [values.copy() for values in case]
    rank_metrics(*case)
    for values, copy in zip(case, copies, strict=True):
        np.testing.assert_array_equal(values, copy)


@pytest.mark.skipif(COMPILED is None, reason="snnet._rank_metrics is not built")
@pytest.mark.parametrize(
    ("starts", "columns"),
    [([0, 1], [4]), ([0, 1], [-1]), ([0, 2], [0]), ([1, 1], [0]), ([0], []), ([0, 2], [2, 1])],
)
def test_compiled_form_refuses_lists_that_leave_the_gallery(starts, columns):
    starts, columns = np.array(starts, dtype=np.int64), np.array(columns, dtype=np.int64)
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="matches: "):
        COMPILED.count_ranks(
            np.zeros((1, 4), np.float32), starts, columns, np.zeros(2, np.int64), none, none, 1
        )


@pytest.mark.parametrize("definition", ["step", "trapezoid"])
def test_scores_of_each_query_are_what_its_metrics_would_be_alone(form, definition):
    similarity, *ids = random_case(40, 90, identities=30, levels=12, seed=5)
    scores = score_queries(similarity, *ids, definition)
    query_pids, gallery_pids, query_cams, gallery_cams = ids
    for row in range(40):
        alone = walk(
            similarity[row : row + 1], query_pids[row : row + 1], gallery_pids, query_cams[row : row + 1],
            gallery_cams, definition, max_rank=90,
        )  # fmt: skip
        if alone is None:
            assert [column[row] for column in scores] == [0, 0, 0, 0]
            continue
        assert scores.average_precision[row] == pytest.approx(alone.mAP, abs=1e-12)
        assert scores.first_rank[row] == np.argmax(alone.cmc) + 1
        assert scores.matches[row] / scores.last_rank[row] == pytest.approx(alone.mINP, abs=1e-12)
    assert 0 < (scores.matches == 0).sum() < 40


def test_unknown_cameras_ignore_nothing(form):
    similarity = [[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]]
    known = rank_metrics(similarity, [1, 2], [1, 1, 2], [0, 0], [1, 1, 1])
    for cams in ((None, None), (None, [0, 0, 0]), ([0, 0], None)):
        assert_equal(rank_metrics(similarity, [1, 2], [1, 1, 2], *cams), known)
    assert known.rank1 == known.mAP == 1.0
    with pytest.raises(UserError, match="no identity of query_pids is in gallery_pids"):
        rank_metrics(similarity, [1, 2], [3, 3, 3], None, None)


def test_metrics_compare_by_identity():
    one, two = (rank_metrics([[0.9]], [1], [1], [0], [1]) for _ in range(2))
    assert one == one and one != two and len({one, two}) == 2
