"""CMC of galleries with one image an identity, against numbers worked by hand and a walk down each drawn gallery."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snnet import evaluate as command
from snnet.config.commands import EvaluateCommand
from snnet.config.options import config_from
from snnet.config.resolve import resumed
from snnet.errors import UserError
from snnet.evaluate import evaluate
from snnet.retrieval import features as retrieval_features
from snnet.retrieval import single_shot
from snnet.retrieval.features import Identities, rank_gallery
from snnet.retrieval.rank_metrics import have_match, rank_metrics
from snnet.train import train
from snnet.training.checkpoint import load_checkpoint
from snnet_kernels.testing import clustered_features

Q, G = 30, 140
RNG = np.random.default_rng(0)
FEATURES = clustered_features(Q + G, 8)
PIDS, CAMS = RNG.integers(0, 12, Q + G), RNG.integers(0, 3, Q + G)
PIDS[:2], PIDS[Q::9] = 77, -1  # identities without match, and junk
SIMILARITY = np.round((FEATURES[:Q] @ FEATURES[Q:].t()).numpy(), 1)  # many ties
GIVEN = SIMILARITY, PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:]


def test_ranks_worked_by_hand() -> None:
    # Of the own camera; the match; two of identity 3 before it; two of identity 4 after it; junk.
    similarity = [[0.99, 0.7, 0.9, 0.8, 0.6, 0.5, 1.0]]
    given = np.array([5]), np.array([5, 5, 3, 3, 4, 4, -1]), np.array([0]), np.array([0, 1, 0, 1, 0, 1, 1])
    always = rank_metrics(similarity, *given, single_gallery_shot=3, max_rank=4)
    assert always.cmc.tolist() == [0, 1, 1, 1]  # one of identity 3 is ahead, none of identity 4
    assert always.single_gallery_shot and not rank_metrics(similarity, *given).single_gallery_shot
    assert always.mAP == 1 / 3  # both images of identity 3 count there
    ties = rank_metrics([[0.5, 0.5, 0.5]], [1], [2, 1, 3], [0], [1, 1, 1], single_gallery_shot=0, max_rank=3)
    assert ties.cmc.tolist() == [0, 1, 1]


def test_half_of_an_identitys_images_are_ahead_half_of_the_time() -> None:
    similarity = np.tile([0.5, 0.9, 0.1], (2000, 1))
    given = np.full(2000, 1), np.array([1, 2, 2]), np.zeros(2000, int), np.ones(3, int)
    found = rank_metrics(similarity, *given, single_gallery_shot=0, max_rank=2)
    assert abs(found.cmc[0] - 0.5) < 0.02 and found.cmc[1] == 1


def walked(seed: int, max_rank: int) -> np.ndarray:
    """Literally, for the same draws: one image of each identity, sorted, walked down to the match."""
    identities = sorted({pid for pid in PIDS[Q:].tolist() if pid != -1})
    drawn = np.random.default_rng(seed).random((Q, 10, len(identities)))
    hits = []
    for q in range(Q):
        others = [j for j in range(G) if PIDS[Q + j] != -1]
        own = [j for j in others if PIDS[Q + j] == PIDS[q] and CAMS[Q + j] != CAMS[q]]
        if not own:
            continue
        for repeat in drawn[q]:
            gallery = []
            for number, pid in zip(repeat, identities, strict=True):
                images = own if pid == PIDS[q] else [j for j in others if PIDS[Q + j] == pid]
                gallery.append(images[int(number * len(images))])
            order = sorted(gallery, key=lambda j, q=q: (-SIMILARITY[q, j], j))
            rank = next(place for place, j in enumerate(order, start=1) if PIDS[Q + j] == PIDS[q])
            hits.append([rank <= r for r in range(1, max_rank + 1)])
    return np.mean(hits, axis=0)


@pytest.mark.parametrize("entries", [1, 1 << 20], ids=["a-query-at-a-time", "at-once"])
@pytest.mark.parametrize("seed", [0, 7])
def test_cmc_is_that_of_a_walk(seed: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_shot, "_ENTRIES", entries)
    found = rank_metrics(*GIVEN, max_rank=12, single_gallery_shot=seed)
    np.testing.assert_allclose(found.cmc, walked(seed, 12), rtol=0, atol=1e-12)
    usual = rank_metrics(*GIVEN, max_rank=12)
    assert (found.mAP, found.mINP, found.num_queries) == (usual.mAP, usual.mINP, usual.num_queries)
    assert found.num_without_match > 0 and not np.array_equal(found.cmc, usual.cmc)


def test_parts_of_a_large_set_draw_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    retrieval = Identities(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])
    monkeypatch.setattr(retrieval_features, "PAIRS_AT_A_TIME", Q * G // 2)
    found = rank_gallery(FEATURES[:Q], FEATURES[Q:], retrieval, "step", 5)
    generator = np.random.default_rng(5)
    similarity = (FEATURES[:Q] @ FEATURES[Q:].t()).numpy()
    halves = [
        rank_metrics(
            similarity[rows],
            PIDS[:Q][rows],
            PIDS[Q:],
            CAMS[:Q][rows],
            CAMS[Q:],
            single_gallery_shot=generator,
        )
        for rows in np.array_split(np.flatnonzero(have_match(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])), 2)
    ]
    counts = [half.num_queries for half in halves]
    assert found.rank1 == pytest.approx(
        np.average([half.rank1 for half in halves], weights=counts), abs=1e-12
    )


@pytest.mark.parametrize("off", [None, False, np.False_])
def test_false_is_off(off: Any) -> None:
    found, usual = rank_metrics(*GIVEN, single_gallery_shot=off), rank_metrics(*GIVEN)
    assert not found.single_gallery_shot and found.cmc.tolist() == usual.cmc.tolist()
    retrieval = Identities(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])
    ranked = rank_gallery(FEATURES[:Q], FEATURES[Q:], retrieval, "step", off)
    assert not ranked.single_gallery_shot


@pytest.mark.parametrize("wrong", [True, np.True_, -1, 1.5, "1", [1]])
def test_what_is_no_seed_is_named(wrong: Any) -> None:
    message = rf"^single_gallery_shot must be a seed .*, got {re.escape(repr(wrong))}$"
    with pytest.raises(UserError, match=message):
        rank_metrics(*GIVEN, single_gallery_shot=wrong)
    retrieval = Identities(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])
    with pytest.raises(UserError, match=message):
        rank_gallery(FEATURES[:Q], FEATURES[Q:], retrieval, "step", wrong)


def test_no_match_is_an_error_as_ever() -> None:
    with pytest.raises(
        UserError, match="none of the 1 queries has a match in the gallery: no identity of query"
    ):
        rank_metrics([[0.5]], [1], [2], [0], [1], single_gallery_shot=0)


def test_the_flag_changes_cmc_and_says_so(tiny_market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--arch", "osnet_x0_25", "--weights", "none", "--dataset", "market1501", "--data-dir", str(tiny_market),
        "--height", "32", "--width", "16", "--device", "cpu", "--workers", "0", "--seed", "1", "--rerank",
    ]  # fmt: skip
    plain = evaluate(EvaluateCommand.parse(words))
    found = evaluate(EvaluateCommand.parse([*words, "--single-gallery-shot"]))
    assert found["single_gallery_shot"] is found["reranked"]["single_gallery_shot"] is True
    assert "single_gallery_shot" not in plain
    assert found["mAP"] == plain["mAP"] and found["rank1"] != plain["rank1"]
    assert evaluate(EvaluateCommand.parse([*words, "--single-gallery-shot"])) == found
    capsys.readouterr()
    command.main(EvaluateCommand.parse([*words, "--single-gallery-shot", "--quiet"]))
    note = "(16 queries, mAP by step, CMC of galleries with one image an identity; in percent)"
    assert capsys.readouterr().out.splitlines()[-1] == note


def test_a_run_with_the_flag_goes_on_from_its_checkpoint(
    tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = {**tiny_options, "single_gallery_shot": True, "epochs": 1, "output_dir": str(folder)}
    results = train(config_from(options))
    assert results["before"]["single_gallery_shot"] is True
    assert load_checkpoint(folder)["before"] == results["before"]
    again = train(resumed(folder, {}), resume=folder)
    assert again["after"] == results["after"]
