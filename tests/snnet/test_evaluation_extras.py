"""Query expansion and verification rates against their definitions, and the flags that ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snnet import evaluate as command
from snnet.config.commands import EvaluateCommand
from snnet.errors import UserError
from snnet.evaluate import evaluate
from snnet.retrieval import features as features_module
from snnet.retrieval import query_expansion, verification
from snnet.retrieval.features import Identities, expand_and_rank, rank_gallery, rerank_gallery
from snnet.retrieval.query_expansion import expand_queries
from snnet.retrieval.verification import true_positive_rates
from snnet_kernels.testing import clustered_features
from tests.snnet.tiny_run import draw_market

Q, G = 20, 90
FEATURES = clustered_features(Q + G, 16)
RNG = np.random.default_rng(0)
PIDS, CAMS = RNG.integers(0, 6, Q + G), RNG.integers(0, 3, Q + G)
PIDS[Q::9] = -1


def expanded(features: np.ndarray, k: int, power: float) -> np.ndarray:
    """Literally: sums over the k most similar images, equal ones by index."""
    similarity = features @ features.T
    rows = []
    for row in similarity:
        order = sorted(range(len(features)), key=lambda j, row=row: (-row[j], j))[:k]
        total = sum(max(row[j], 0) ** power * features[j] for j in order)
        rows.append(total / np.linalg.norm(total))
    return np.array(rows)


@pytest.mark.parametrize(("k", "power"), [(10, 3.0), (4, 0.0), (1, 3.0), (500, 1.5)])
def test_query_expansion_is_a_weighted_mean_of_neighbours(
    k: int, power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_expansion, "FLOATS", 7 * k * FEATURES.shape[1])
    query, gallery = expand_queries(FEATURES[:Q], FEATURES[Q:], k, power)
    assert (len(query), len(gallery)) == (Q, G)
    expected = expanded(FEATURES.double().numpy(), k, power)
    np.testing.assert_allclose(torch.cat([query, gallery]).numpy(), expected, rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most entries that a result of an operation has."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, torch.Tensor):
                self.entries = max(self.entries, result.numel())
        return results


@pytest.mark.parametrize("k", [10, 60])
def test_query_expansion_holds_few_features_at_a_time_whatever_its_neighbours(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d = FEATURES.shape
    expected = expand_queries(FEATURES[:Q], FEATURES[Q:], k)
    monkeypatch.setattr(query_expansion, "FLOATS", most := 2 * n * d)
    with Largest() as largest:
        found = expand_queries(FEATURES[:Q], FEATURES[Q:], k)
    assert n * d <= largest.entries <= max(most, n * n) < n * k * d
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_query_expansion_is_float32_under_autocast() -> None:
    expected = expand_queries(FEATURES[:Q], FEATURES[Q:])
    with torch.autocast("cpu", torch.bfloat16):
        found = expand_queries(FEATURES[:Q], FEATURES[Q:])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_query_expansion_leaves_junk_of_queries_out() -> None:
    pids = PIDS.copy()
    pids[:Q:5] = -1
    kept = np.flatnonzero(pids[:Q] != -1)
    rest = Identities(pids[kept], pids[Q:], CAMS[kept], CAMS[Q:])
    whole = Identities(pids[:Q], pids[Q:], CAMS[:Q], CAMS[Q:])
    for rank in (lambda *given: expand_and_rank(*given, 5), rerank_gallery):
        got = rank(FEATURES[:Q], FEATURES[Q:], whole, "step")
        expected = rank(FEATURES[kept.tolist()], FEATURES[Q:], rest, "step")
        assert got.mAP == expected.mAP
        assert got.num_without_match == expected.num_without_match + 4


def test_query_expansion_leaves_junk_out() -> None:
    retrieval = Identities(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])
    got = expand_and_rank(FEATURES[:Q], FEATURES[Q:], retrieval, "step", 5)
    kept = np.concatenate([np.arange(Q), Q + np.flatnonzero(PIDS[Q:] != -1)])
    among = torch.from_numpy(expanded(FEATURES.double().numpy()[kept], 5, 3.0)).float()
    without = Identities(PIDS[:Q], PIDS[kept][Q:], CAMS[:Q], CAMS[kept][Q:])
    expected = rank_gallery(among[:Q], among[Q:], without, "step")
    assert got.mAP == pytest.approx(expected.mAP, abs=1e-9)
    assert got.mAP != rank_gallery(FEATURES[:Q], FEATURES[Q:], retrieval, "step").mAP


@pytest.mark.parametrize("pairs", [100, 1 << 24])
def test_rates_are_those_of_all_thresholds(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PAIRS_AT_A_TIME", pairs)
    pids, cams = PIDS.copy(), CAMS
    pids[3], pids[5] = -1, 99  # queries that ranking does not count
    similarity = (FEATURES[:Q] @ FEATURES[Q:].t()).numpy()
    similarity, asked = np.delete(similarity, [3, 5], axis=0), np.delete(np.arange(Q), [3, 5])
    same = pids[asked, None] == pids[Q:]
    counted = pids[Q:] != -1
    true = similarity[same & (cams[asked, None] != cams[Q:]) & counted]
    false = similarity[~same & counted]
    rates = (0.0, 1e-3, 0.02, 0.5)
    got = true_positive_rates(FEATURES[:Q], FEATURES[Q:], pids[:Q], pids[Q:], cams[:Q], cams[Q:], rates)
    for rate in rates:
        accepted = [
            (true > threshold).mean() for threshold in [*false, -2.0] if (false > threshold).mean() <= rate
        ]
        assert got[rate] == pytest.approx(max(accepted), abs=1e-12)
    assert 0 < got[0.02] < got[0.5] < 1


def test_ties_are_accepted_together() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    gallery_pids = np.array([1, 1, 2, 3])  # at similarities 1, 0.6, 0.6 and 0
    cams = np.zeros(1, int), np.ones(4, int)
    given = features[:1], features[1:], np.array([1]), gallery_pids, *cams
    # The second true pair is as similar as the first false one: both or none.
    assert true_positive_rates(*given, rates=(0.0, 0.49, 0.5)) == {0.0: 0.5, 0.49: 0.5, 0.5: 1.0}


@pytest.mark.parametrize("rank", [rank_gallery, true_positive_rates])
@pytest.mark.parametrize(("factor", "norm"), [(2.0, "2"), (float("nan"), "nan")])
def test_rows_that_are_not_of_norm_1_are_not_ranked(rank: Any, factor: float, norm: str) -> None:
    identities = Identities(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])
    rest = (identities, "step") if rank is rank_gallery else identities.arrays()
    scaled = FEATURES.clone()
    scaled[[3, Q + 4]] *= factor
    message = f"must have rows of norm 1, row {{}} has {norm}: ranking compares directions"
    with pytest.raises(UserError, match=f"^query {message.format(3)}"):
        rank(scaled[:Q], FEATURES[Q:], *rest)
    with pytest.raises(UserError, match=f"^gallery {message.format(4)}"):
        rank(FEATURES[:Q], scaled[Q:], *rest)


@pytest.mark.parametrize("rank", [rank_gallery, rerank_gallery, expand_and_rank, true_positive_rates])
@pytest.mark.parametrize("queries", [Q - 1, Q + 1])
@pytest.mark.parametrize("field", ["query_pids", "gallery_pids", "query_cams", "gallery_cams"])
def test_identities_of_other_images_are_named(rank: Any, queries: int, field: str) -> None:
    arrays = {
        "query_pids": PIDS[:Q], "gallery_pids": PIDS[Q:], "query_cams": CAMS[:Q], "gallery_cams": CAMS[Q:],
    }  # fmt: skip
    per = "gallery image" if field.startswith("gallery") else "query"
    size = len(arrays[field])
    arrays[field] = np.resize(arrays[field], size + queries - Q)
    identities = Identities(**arrays)
    rest = {rank_gallery: ("step",), rerank_gallery: ("step",), expand_and_rank: ("step", 5)}
    given = (identities, *rest[rank]) if rank in rest else identities.arrays()
    message = (
        rf"^{field} must hold one number per {per}, shape \({size},\), got shape \({size + queries - Q},\)$"
    )
    with pytest.raises(UserError, match=message):
        rank(FEATURES[:Q], FEATURES[Q:], *given)


@pytest.mark.parametrize("rank", [rank_gallery, true_positive_rates])
def test_features_that_do_not_fit_together_are_named(rank: Any) -> None:
    identities = Identities(PIDS[:Q], PIDS[Q:], CAMS[:Q], CAMS[Q:])
    rest = (identities, "step") if rank is rank_gallery else identities.arrays()
    with pytest.raises(
        UserError, match=r"^query and gallery must have the same number of features, got 16 and 8"
    ):
        rank(FEATURES[:Q], clustered_features(G, 8), *rest)
    with pytest.raises(
        UserError, match=r"^query must be real numbers \[images, d\], got torch.float32 \[16\]"
    ):
        rank(FEATURES[0], FEATURES[Q:], *rest)


def test_what_cannot_be_computed_is_named() -> None:
    one = torch.tensor([[1.0, 0.0]])
    pid, cam = np.array([1]), np.array([0])
    with pytest.raises(UserError, match="a ROC needs pairs of one identity in two cameras, and pairs of two"):
        true_positive_rates(one, one, pid, pid, cam, cam + 1)
    with pytest.raises(UserError, match=r"rates must be from 0 to below 1, got \[1.0\]"):
        true_positive_rates(one, one, pid, pid, cam, cam, rates=[1.0])
    with pytest.raises(UserError, match="neighbors must be an integer of at least 1, got 0"):
        expand_queries(one, one, 0)
    with pytest.raises(UserError, match="gallery must have rows of norm 1, row 0 has 2: query expansion"):
        expand_queries(one, 2 * one)
    with pytest.raises(
        UserError, match=r"^--query-expansion: must be a whole number >= 1 and < 1000000000, or none"
    ):
        EvaluateCommand.parse(["--checkpoint", "x", "--query-expansion", "0"])


@pytest.mark.parametrize("power", [float("nan"), float("inf"), -1, -0.5, True, "3", None])
def test_a_power_that_cannot_be_is_named(power: Any) -> None:
    with pytest.raises(UserError, match=f"^power must be a number of at least 0, and finite, got {power!r}$"):
        expand_queries(FEATURES[:Q], FEATURES[Q:], 3, power)


def test_features_that_cannot_be_expanded_are_named() -> None:
    query, gallery = FEATURES[:Q], FEATURES[Q:]
    for given, message in (
        ((query.double(), gallery), r"^query must be float32 \[images, d\], got torch.float64 \[20, 16\]$"),
        ((query, gallery.half()), r"^gallery must be float32 \[images, d\], got torch.float16 \["),
        (
            (query, clustered_features(G, 8)),
            "^query and gallery must have the same number of features, got 16 and 8$",
        ),
        ((query, gallery[0]), r"^gallery must be float32 \[images, d\], got torch.float32 \[16\]$"),
        ((query[:, :0], gallery), r"^query must be float32 \[images, d\], got torch.float32 \[20, 0\]$"),
    ):
        with pytest.raises(UserError, match=message):
            expand_queries(*given)


def test_what_no_ranking_can_give_is_said_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "decode", lambda *_, **__: pytest.fail("an image is read"))
    network = ["--arch", "osnet_x0_25", "--weights", "none", "--dataset", "market1501", "--device", "cpu"]
    one_camera = draw_market(tmp_path / "camera", cameras=1, identities=2)
    with pytest.raises(
        UserError, match="none of the 2 queries has a match in the gallery: all images are of one"
    ):
        evaluate(EvaluateCommand.parse([*network, "--data-dir", str(one_camera)]))
    one_person = draw_market(tmp_path / "person", identities=1)
    with pytest.raises(UserError, match="a ROC needs pairs of one identity in two cameras, and pairs of two"):
        evaluate(EvaluateCommand.parse([*network, "--data-dir", str(one_person), "--roc"]))


def test_evaluate_reports_both(
    tiny_options: dict[str, Any],
    tiny_market: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "--arch", "osnet_x0_25", "--weights", "none", "--dataset", "market1501", "--data-dir", str(tiny_market),
        "--height", "32", "--width", "16", "--device", "cpu", "--workers", "0", "--seed", "1",
    ]  # fmt: skip
    plain = evaluate(EvaluateCommand.parse(words))
    assert not {"expanded", "tpr_at_fpr"} & plain.keys()
    found = evaluate(EvaluateCommand.parse([*words, "--query-expansion", "4", "--roc"]))
    assert found["mAP"] == plain["mAP"] != found["expanded"]["mAP"]
    assert list(found["tpr_at_fpr"]) == ["0.0001", "0.001", "0.01"]
    capsys.readouterr()
    command.main(EvaluateCommand.parse([*words, "--query-expansion", "4", "--roc", "--quiet"]))
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[2].split()[:1] == ["expanded"]
        and lines[2].split()[4] == f"{100 * found['expanded']['mAP']:.2f}"
    )
    rates = [f"{100 * share:.2f}" for share in found["tpr_at_fpr"].values()]
    assert lines[-1] == (
        f"accepted: {rates[0]} of true pairs at 0.01 of false ones, {rates[1]} of true pairs at 0.1 of false ones, "
        f"{rates[2]} of true pairs at 1 of false ones (in percent)"
    )
