"""k-reciprocal re-ranking of both forms, compiled and plain, against the paper's definition taken literally."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snnet.config.commands import EvaluateCommand
from snnet.config.options import config_from
from snnet.errors import UserError
from snnet.evaluate import evaluate
from snnet.retrieval import reranking
from snnet.retrieval.features import Identities, rerank_gallery
from snnet.retrieval.rank_metrics import rank_metrics
from snnet.retrieval.reranking import rerank
from snnet.train import train
from snnet_kernels import reference
from snnet_kernels.ops.similarity import float32_similarity
from tests import jaccard_definition
from tests.kernels.inputs import needs_cpu_library


@pytest.fixture(params=["reference", pytest.param("compiled", marks=needs_cpu_library)])
def form(request, monkeypatch):
    """Runs the test with either form of the steps, the plain one over several tiles of the product."""
    if request.param == "reference":
        monkeypatch.setattr(reranking, "ops", reference)
        monkeypatch.setattr(sys.modules["snnet_kernels.reference.neighbor_lists"], "TILE", 32)


def definition(similarity, queries, k1=20, k2=6, original_weight=0.3):
    """Distances [q, g] from similarities [N, N]."""
    jaccard = jaccard_definition.distances(similarity, k1, k2, searched=len(similarity), relative=True)
    original = jaccard_definition.original_distances(similarity, relative=True)
    return ((1 - original_weight) * jaccard + original_weight * original)[:queries, queries:]


def clustered(n, dim=16, identities=6, seed=0):
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((identities, dim))[rng.integers(0, identities, n)]
    drawn = drawn + 0.7 * rng.standard_normal((n, dim))
    return torch.from_numpy((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32))


def similarities(features):
    return (features @ features.t()).numpy()


@pytest.mark.parametrize(
    ("k1", "k2", "weight"),
    [
        (20, 6, 0.3),  # the paper's
        (7, 1, 0.0),  # no query expansion, no original distance; half of an odd k1
        (5, 9, 0.5),  # more images averaged over than compared
        (1, 2, 1.0),  # the original distance alone
        (500, 3, 0.3),  # more neighbours than images
    ],
)
def test_equals_the_definition(form, k1, k2, weight):
    for seed in range(2):
        features = clustered(70, seed=seed)
        got = rerank(features[:12], features[12:], k1=k1, k2=k2, original_weight=weight)
        assert got.dtype == np.float32 and got.shape == (12, 58)
        expected = definition(similarities(features), 12, k1, k2, weight)
        # Distances lie in 0..1: a few roundings of float32.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_defaults_of_torch_change_nothing(form, dtype, device):
    features = clustered(70)
    expected = rerank(features[:12], features[12:])
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            found = rerank(features[:12], features[12:])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_ties_go_by_index(form):
    """Products of these are exact whatever the order of summation, and take 17 values: most neighbours tie."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.choice([-0.25, 0.25], (90, 16)).astype(np.float32))
    assert len(np.unique(similarities(features))) <= 17
    for k1 in (4, 20):
        got = rerank(features[:20], features[20:], k1=k1, k2=3)
        np.testing.assert_allclose(got, definition(similarities(features), 20, k1, 3), rtol=0, atol=1e-6)


def test_a_case_worked_by_hand(form):
    """On a circle: the query at 0, gallery at 60 and 180 degrees; k1 = 1, so half of it is 0.

    Query and first image are each other's nearest, the second's nearest is the first, which is not mutual.
    Squared distances: 1 and 4 from the query, 3 between the gallery images.
    """
    angles = torch.tensor([0.0, math.pi / 3, math.pi])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    query, first = math.exp(-1 / 4), math.exp(-1 / 3)  # over the largest of the row: 1/4 and 1/3
    smaller = first / (1 + first) + query / (1 + query)
    expected = [0.7 * (1 - smaller / (2 - smaller)) + 0.3 / 4, 0.7 + 0.3]
    np.testing.assert_allclose(rerank(features[:1], features[1:], k1=1, k2=1)[0], expected, atol=1e-6)


def test_degenerate_sets_are_defined(form):
    one = torch.tensor([[0.6, 0.8]])
    np.testing.assert_array_equal(rerank(one, one), [[0.0]])
    # 30 copies of one image: with k1 = 20 the last have no place among anyone's nearest, their own included.
    copies = one.repeat(30, 1)
    got = rerank(copies[:2], copies[2:], k1=20, k2=1)
    expected = definition(np.ones((30, 30)), 2, 20, 1)
    assert set(np.round(expected[0], 3)) == {0.0, 0.7}
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    # A row of zeros is at squared distance 2 of all, itself too.
    zero = torch.cat([clustered(20), torch.zeros(1, 16)])
    got = rerank(zero[:3], zero[3:], k1=4)
    np.testing.assert_allclose(got, definition(similarities(zero), 3, 4), rtol=0, atol=1e-6)


@needs_cpu_library
def test_neither_threads_nor_tiles_change_a_bit():
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.choice([-0.25, 0.25], (300, 16)).astype(np.float32))
    expected = definition(similarities(features), 40)
    padded = torch.cat([features, torch.zeros(300, 2**15)], dim=1)  # so long that a tile has 64 rows
    found, before = [], torch.get_num_threads()
    try:
        for rows, threads in ((features, 1), (features, 3), (padded, 1), (padded, 2)):
            torch.set_num_threads(threads)
            found.append(rerank(rows[:40], rows[40:]))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@needs_cpu_library
def test_the_original_distance_has_the_bits_of_the_ranking():
    """With λ = 1 only it is left; its similarities are those that images are ranked by."""
    features = clustered(1200, dim=50, seed=4)  # two tiles
    query, gallery = features[:130], features[130:]
    similarity = float32_similarity(query, gallery)
    lowest = float32_similarity(features, features).amin(1)[:130, None]
    expected = (2 - 2 * similarity) / (2 - 2 * lowest)
    np.testing.assert_array_equal(rerank(query, gallery, original_weight=1), expected.numpy())


@needs_cpu_library
def test_features_may_have_any_strides():
    wide = torch.nn.functional.normalize(torch.randn(24, 16), dim=1)
    expected = rerank(wide[:5].clone(), wide[::2].clone())
    np.testing.assert_array_equal(rerank(wide[:5], wide[::2]), expected)
    np.testing.assert_array_equal(
        rerank(wide[:5].t().contiguous().t(), wide.repeat(1, 2)[::2, :16]), expected
    )


@needs_cpu_library
def test_it_can_be_interrupted(monkeypatch):
    def handler(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.ops.snnet.take_band_, "default", handler)
    with pytest.raises(KeyboardInterrupt):
        rerank(clustered(20), clustered(30))
    monkeypatch.undo()
    assert rerank(clustered(20), clustered(30)).shape == (20, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 0}, "k1 must be an integer of at least 1, got 0"),
        ({"k2": 2.5}, "k2 must be an integer of at least 1, got 2.5"),
        ({"original_weight": 1.5}, "original_weight must be from 0 to 1, got 1.5"),
        ({"query": torch.zeros(0, 16)}, "^query and gallery must have at least one image each, got 0 and 5$"),
        (
            {"gallery": torch.zeros(0, 16)},
            "^query and gallery must have at least one image each, got 3 and 0$",
        ),
        (
            {"gallery": clustered(5).double()},
            r"^gallery must be float32 \[images, d\], got torch.float64 \[5, 16\]$",
        ),
        ({"gallery": 2 * clustered(5)}, "gallery must have rows of norm 1, row 0 has 2: re-ranking compares"),
        ({"gallery": clustered(5) * torch.nan}, "gallery must have rows of norm 1, row 0 has nan"),
        ({"gallery": clustered(5, dim=8)}, "must have the same number of features, got 16 and 8"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        rerank(**{"query": clustered(3), "gallery": clustered(5), **change})


def test_junk_of_the_gallery_is_nobodys_neighbour():
    features = clustered(80, seed=3)
    rng = np.random.default_rng(0)
    pids, cams = rng.integers(-1, 4, 80), rng.integers(0, 3, 80)
    pids[:20] = np.abs(pids[:20])
    assert (pids[20:] == -1).sum() > 5
    retrieval = Identities(pids[:20], pids[20:], cams[:20], cams[20:])
    got = rerank_gallery(features[:20], features[20:], retrieval, "step")
    kept = np.flatnonzero((np.arange(80) < 20) | (pids != -1))
    expected = rank_metrics(
        -definition(similarities(features[kept]), 20), pids[:20], pids[kept][20:], cams[:20], cams[kept][20:]
    )
    assert got.mAP == pytest.approx(expected.mAP, abs=1e-12)
    np.testing.assert_array_equal(got.cmc, expected.cmc)


def test_train_and_evaluate_report_it_beside_the_plain_ranking(
    tiny_options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        **tiny_options,
        "epochs": 2,
        "eval_every": 1,
        "rerank": True,
        "output_dir": str(tmp_path / "run"),
    }
    results = train(config_from(options))
    assert results["reranked"]["mAP"] != results["after"]["mAP"]
    assert results["reranked"]["queries"] == results["after"]["queries"] == 16
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("re-ranked")]
    assert table[0][4] == f"{100 * results['reranked']['mAP']:.2f}"
    first, last = (json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert "mAP" in first and "reranked_mAP" not in first
    assert last["reranked_mAP"] == results["reranked"]["mAP"]

    checkpoint = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu"]
    found = evaluate(
        EvaluateCommand.parse(checkpoint)
    )  # re-ranking is part of the checkpoint's configuration
    assert found["reranked"] == results["reranked"]
    assert "reranked" not in evaluate(EvaluateCommand.parse([*checkpoint, "--no-rerank"]))
