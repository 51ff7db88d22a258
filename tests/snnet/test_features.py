"""Extraction in order and retrieval in parts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snnet.config.options import Config, RuntimeConfig, config_from
from snnet.data import ImageSet, ReIDDataset, build_dataset
from snnet.errors import UserError
from snnet.models import ReIDModel, build_model
from snnet.retrieval import features as module
from snnet.retrieval.features import (
    Identities,
    RetrievalSet,
    decode_retrieval_set,
    extract_features,
    module_features,
    rank_gallery,
    retrieval_features,
)
from snnet.retrieval.rank_metrics import rank_metrics
from snnet.runtime import PlacedModel, Placement, channels_last
from snnet_kernels.testing import clustered_features

CPU = Placement(torch.device("cpu"), amp=False, channels_last=False)


@pytest.fixture(scope="module")
def config(tiny_options: dict[str, Any]) -> Config:
    return config_from(tiny_options)


@pytest.fixture(scope="module")
def retrieval(config: Config) -> RetrievalSet:
    found = decode_retrieval_set(build_dataset("market1501", config.data.data_dir), config)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def model() -> ReIDModel:
    torch.manual_seed(0)
    return build_model("osnet_x0_25")


def test_features_are_in_order_of_norm_one_and_of_the_kind_asked_for(
    model: ReIDModel, retrieval: RetrievalSet, config: Config
) -> None:
    from snnet.data import extraction_loader

    ((images, index),) = list(
        extraction_loader(retrieval.query, height=32, width=16, batch_size=16, workers=0)
    )
    assert index.tolist() == list(range(16))
    model.eval()
    with torch.no_grad():
        wanted = {"train": model(images), "before": model.retrieve(images)}
        wanted["after"] = model.retrieve(images, after_neck=True)
    model.train()
    # 16 images in batches of 5: nothing dropped, nothing moved.
    network = PlacedModel(model, config_with(config, batch_size=5), CPU)
    for kind, want in wanted.items():
        found = extract_features(network, retrieval.query, kind)  # type: ignore[arg-type]
        assert torch.allclose(found, want, atol=1e-5)
        assert torch.allclose(found.norm(dim=1), torch.ones(16), atol=1e-5)
    assert model.training


def test_a_gallery_without_identities_is_not_even_decoded(config: Config) -> None:
    known, unknown = (ImageSet(("gone.png",), pids, None) for pids in (np.zeros(1, np.int64), None))
    for query, gallery in ((known, unknown), (unknown, known), (known, None)):
        assert decode_retrieval_set(ReIDDataset("custom", known, query, gallery), config) is None


def config_with(config: Config, **values: Any) -> Config:
    from snnet.config.options import flatten

    return config_from({**flatten(config), **values})


def test_bfloat16_and_channels_last_change_features_little(
    model: ReIDModel, retrieval: RetrievalSet, config: Config
) -> None:
    exact = extract_features(PlacedModel(model, config, CPU), retrieval.query, "before")
    placement = Placement(torch.device("cpu"), amp=True, channels_last=True)
    rough = extract_features(PlacedModel(model, config, placement), retrieval.query, "before")
    assert rough.dtype == torch.float32
    assert 0.99 < (exact * rough).sum(1).min() < 1.0


@pytest.mark.parametrize(
    ("asked", "device", "amp", "chosen", "numbers"),
    [(None, "cpu", False, True, "float32"), (None, "cpu", True, True, "bfloat16"),
     (None, "cuda:0", False, False, "float32 (convolutions in tf32)"), (None, "cuda:0", True, True, "bfloat16"),
     (False, "cpu", True, False, "bfloat16"), (True, "cuda:0", False, True, "float32 (convolutions in tf32)")],
)  # fmt: skip
def test_the_layout_is_the_faster_one_unless_told(
    asked: bool | None, device: str, amp: bool, chosen: bool, numbers: str
) -> None:
    place = torch.device(device)
    config = RuntimeConfig(channels_last=asked, amp=amp)
    assert channels_last(config, place) is chosen
    layout = "channels-last" if chosen else "channels-first"
    assert Placement(place, amp, chosen).summary() == f"{device}, {numbers}, {layout}"


@pytest.mark.parametrize("arch", ["resnet18", "osnet_x0_25", "osnet_ain_x0_25", "osnet_ibn_x1_0"])
def test_the_layout_changes_features_and_gradients_by_rounding_alone(arch: str) -> None:
    images = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for layout in (False, True):
        torch.manual_seed(0)
        model, placement = ReIDModel(arch), Placement(torch.device("cpu"), False, layout)
        placement.place(model)
        with torch.no_grad():
            features = model.eval()(placement.images(images))
        # Training's batch normalisation divides by a spread of 4 images, which magnifies rounding.
        model.eval()(placement.images(images))[:, 0].sum().backward()
        gradients = [parameter.grad for parameter in model.backbone.parameters()]
        found.append((features, gradients))
    (plain, first), (last, second) = found
    assert (plain - last).abs().max() < 1e-6
    scale = max(float(gradient.abs().max()) for gradient in first)
    assert scale > 1e-3
    assert max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) < 1e-5 * scale


def test_map_equals_a_direct_count(model: ReIDModel, retrieval: RetrievalSet, config: Config) -> None:
    features = retrieval_features(PlacedModel(model, config, CPU), retrieval)
    query, gallery = (rows.numpy() for rows in features)
    precisions, firsts = [], []
    for i in range(len(query)):
        same = retrieval.gallery_pids == retrieval.query_pids[i]
        counts = ~(same & (retrieval.gallery_cams == retrieval.query_cams[i]))
        order = np.argsort(-(gallery[counts] @ query[i]), kind="stable")
        hits = same[counts][order]
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        firsts.append(hits[0])
    found = rank_gallery(*features, retrieval, "step")
    assert found.mAP == pytest.approx(np.mean(precisions), abs=1e-12)
    assert found.rank1 == pytest.approx(np.mean(firsts), abs=1e-12)
    assert found.num_queries == 16


def test_ranking_in_parts_gives_the_same_metrics(
    model: ReIDModel, retrieval: RetrievalSet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = retrieval_features(PlacedModel(model, config, CPU), retrieval)
    whole = rank_gallery(*features, retrieval, "step")
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 5 * len(retrieval.gallery))  # 16 queries: parts of 4
    parts = rank_gallery(*features, retrieval, "step")
    assert parts.num_queries == whole.num_queries == 16
    np.testing.assert_allclose(parts.cmc, whole.cmc, atol=1e-12)
    assert (parts.mAP, parts.mINP) == pytest.approx((whole.mAP, whole.mINP), abs=1e-12)


def test_parts_whose_queries_have_no_match_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = np.array([0, 1, 2, 0, 1, 2, 7, -1]), np.array([0, 1, 2, 0, 1, -1])
    cams = np.array([0, 1] * 4), np.zeros(6, int)
    features = clustered_features(14, 8).split([8, 6])
    retrieval = Identities(*pids, *cams)
    whole = rank_gallery(*features, retrieval, "step")
    assert (whole.num_queries, whole.num_without_match) == (3, 5)
    expected = rank_metrics((features[0] @ features[1].t()).numpy(), *pids, *cams)
    assert (whole.mAP, whole.rank1) == (expected.mAP, expected.rank1)
    for pairs in (6, 12, 24):
        monkeypatch.setattr(module, "PAIRS_AT_A_TIME", pairs)
        parts = rank_gallery(*features, retrieval, "step")
        assert (parts.num_queries, parts.num_without_match) == (3, 5)
        assert parts.mAP == pytest.approx(whole.mAP, abs=1e-12)
    elsewhere = dataclasses.replace(retrieval, query_pids=pids[0] + 100)
    with pytest.raises(UserError, match="none of the 8 queries has a match in the gallery: no identity"):
        rank_gallery(*features, elsewhere, "step")


def test_features_that_are_not_finite_are_counted(retrieval: RetrievalSet, config: Config) -> None:
    broken = build_model("osnet_x0_25")
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="the features of 16 of 16 images are not finite"):
        extract_features(PlacedModel(broken, config, CPU), retrieval.query, "before")


class Foreign(torch.nn.Module):
    """A network of somebody else: half of it in training, features of any length in half precision."""

    def __init__(self, output=lambda features: features) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, stride=4), torch.nn.BatchNorm2d(6))
        self.frozen = torch.nn.BatchNorm2d(6).eval()
        self.output = output

    def forward(self, images):
        assert not (self.training or self.frozen.training or torch.is_grad_enabled())
        return self.output(10 * self.frozen(self.body(images)).flatten(1).half())


def test_the_program_for_networks_from_elsewhere_runs(
    tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "backbones.md"
    (program,) = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    (tmp_path / "data").symlink_to(tiny_market)
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten())
    program, given = re.subn(r"^network = \.\.\..*$", "", program, flags=re.M)
    exec(compile(program, "block", "exec"), {"network": network})
    found = re.fullmatch(r"mAP ([\d.]+)%\n", capsys.readouterr().out)
    assert given == 1 and found is not None and 0 < float(found[1]) <= 100
    assert Path("features.npz").is_file()


def test_any_module_gives_features_and_keeps_the_modes_of_its_parts(retrieval: RetrievalSet) -> None:
    foreign = Foreign()
    split = retrieval.query.images
    found = module_features(foreign, split, height=32, width=16, batch_size=5)
    assert foreign.training and foreign.body[1].training and not foreign.frozen.training
    from snnet.data import extraction_loader

    ((images, _),) = extraction_loader(retrieval.query, height=32, width=16, batch_size=16, workers=0)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(foreign.eval()(images).float(), dim=1)
    assert found.dtype == torch.float32 and not found.is_inference()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # rounded to half
    torch.set_default_dtype(torch.float64)  # which changes nothing
    try:
        again = module_features(foreign, retrieval.query, height=32, width=16)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(again, found, rtol=0, atol=2e-3)
    assert not foreign.training


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda f: (f, f), "a tuple; wrap it in a module that returns the features alone"),
        (lambda f: {"features": f}, "a dict; wrap it"),
        (lambda f: f[:, :, None, None], r"shape \(16, 192, 1, 1\) of torch\.float16"),
        (lambda f: f[:3], r"shape \(3, 192\) of torch\.float16"),
        (lambda f: f.argmax(1), r"shape \(16,\) of torch\.int64"),
    ],
    ids=["tuple", "dict", "pictures", "rows", "classes"],
)
def test_what_is_no_feature_is_named(retrieval: RetrievalSet, output: Any, message: str) -> None:
    foreign = Foreign(output)
    needed = r"^the network must return features \[16, d\] of real numbers for 16 images, got "
    with pytest.raises(UserError, match=needed + message):
        module_features(foreign, retrieval.query, height=32, width=16)
    assert foreign.training and not foreign.frozen.training


def test_features_of_a_foreign_module_that_are_not_finite_are_counted(retrieval: RetrievalSet) -> None:
    with pytest.raises(UserError, match="the features of 16 of 16 images are not finite"):
        module_features(Foreign(lambda f: f * torch.inf), retrieval.query, height=32, width=16)
