"""Reading weights: every format, every refusal, and no file that runs code."""

from __future__ import annotations

import os
import pickle
import urllib.error
import urllib.request
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from snnet.errors import UserError
from snnet.models import ReIDModel, build_model
from snnet.models.weights import load_weights, read_state_dict

ARCH = "osnet_x0_25"


def filled(arch: str = ARCH, embedding: str = "fc") -> ReIDModel:
    """A model whose every value differs from a fresh one's."""
    torch.manual_seed(7)
    model = ReIDModel(arch, embedding)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def _torchreid_state(model: ReIDModel) -> dict[str, Tensor]:
    state = OrderedDict(model.backbone.state_dict())
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(751, 512), torch.zeros(751)
    return state


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("form", ["bare", "state_dict", "model", "module", "legacy", "safetensors"])
def test_torchreid_file_round_trip(tmp_path: Path, form: str) -> None:
    source = filled()
    state = _torchreid_state(source)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth.tar")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "module":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    elif form in ("state_dict", "model"):
        torch.save({"epoch": 3, form: state}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "bare")
    model = build_model(ARCH, embedding="fc", weights=str(path))
    assert_equal(model.state_dict(), source.state_dict())
    assert model.pretrained


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("arch", "embedding"), [(ARCH, "pool"), (ARCH, "fc"), ("osnet_ain_x0_25", "pool")])
def test_own_file_round_trip(tmp_path: Path, suffix: str, arch: str, embedding: str) -> None:
    source, path = filled(arch, embedding), tmp_path / f"own{suffix}"
    if suffix == ".pt":
        torch.save({"model": source.state_dict(), "epoch": 4}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    model = build_model(arch, embedding=embedding, weights=path)
    assert_equal(model.state_dict(), source.state_dict())
    assert [group["lr"] for group in model.parameter_groups(0.1, 0.25)] == [0.025] * (
        1 + (embedding == "pool")
    )


def test_pool_leaves_the_published_head_out(tmp_path: Path) -> None:
    source, path = filled(), tmp_path / "torchreid.pth"
    torch.save(_torchreid_state(source), path)
    model = build_model(ARCH, weights=str(path))
    kept = {name: value for name, value in source.backbone.state_dict().items() if not name.startswith("fc.")}
    assert_equal(model.backbone.state_dict(), kept)
    assert torch.equal(model.neck.weight, torch.ones(128))
    backbone, neck = model.parameter_groups(0.1, 0.25)
    assert (backbone["lr"], neck["lr"]) == (0.025, 0.1)
    assert len(neck["params"]) == 2
    assert len(backbone["params"]) + 2 == len(list(model.parameters()))


def test_own_fc_file_serves_pool(tmp_path: Path) -> None:
    source, path = filled(), tmp_path / "own.pt"
    torch.save({"model": source.state_dict()}, path)
    model = build_model(ARCH, weights=str(path))
    assert torch.equal(model.backbone.conv5.conv.weight, source.backbone.conv5.conv.weight)
    assert torch.equal(model.neck.running_var, torch.ones(128))
    assert not model.neck_pretrained


def test_counters_may_be_absent_and_half_precision_is_read(tmp_path: Path) -> None:
    source, path = filled(), tmp_path / "old.pth"
    state = {
        name: value.half()
        for name, value in source.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(state) == 485
    torch.save(state, path)
    model = build_model(ARCH, embedding="fc", weights=str(path))
    weight = model.backbone.conv1.conv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.backbone.conv1.conv.weight.half().float())


# Files of older numpy name its old module; the name can be changed in place in the legacy format.
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_values_beside_the_weights_are_dropped(tmp_path: Path, module: bytes) -> None:
    source, path = filled(), tmp_path / "model.pth.tar-60"
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1)
    content = {
        "state_dict": _torchreid_state(source),
        "epoch": 60,
        "rank1": np.float64(0.75),
        "cmc": np.arange(3.0),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar\n" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n"))
    allowed = set(torch.serialization.get_safe_globals())
    model = build_model(ARCH, embedding="fc", weights=str(path))
    assert_equal(model.state_dict(), source.state_dict())
    assert set(torch.serialization.get_safe_globals()) == allowed


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_refused(tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "weights.pth", tmp_path / "ran"
    content = {"state_dict": _torchreid_state(filled()), "extra": _Malicious(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"extra": _Malicious(marker)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        UserError, match=r"weights\.pth can be read only by running code \((posix|nt)\.mkdir\)"
    ):
        build_model(ARCH, weights=str(path))
    assert not marker.exists()


def test_numpy_in_place_of_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.conv.weight": np.float64(1.0)}, path)
    with pytest.raises(UserError, match=r"'conv1\.conv\.weight' in .*weights\.pth is no tensor"):
        read_state_dict(str(path))


def test_mismatch_lists_the_keys_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = dict(filled().backbone.state_dict())
    for i in range(12):
        state[f"extra.{i}"] = torch.zeros(1)
    del state["conv5.bn.bias"]
    state["conv1.conv.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(state, path)
    torch.manual_seed(0)
    model = ReIDModel(ARCH, "fc")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, str(path))
    message = str(caught.value)
    assert f"keys of {path} do not fit osnet_x0_25 with embedding 'fc'" in message
    assert "1 missing: conv5.bn.bias;" in message
    assert "12 unexpected: extra.0, extra.1, extra.2, " in message
    assert "extra.9 and 2 more;" in message and "extra.10" not in message
    assert "1 of another shape: conv1.conv.weight (64, 3, 7, 7) for (16, 3, 7, 7)" in message
    assert "\n" not in message
    assert_equal(model.state_dict(), before)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "ain.pth"
    torch.save(_torchreid_state(filled("osnet_ain_x0_25")), path)
    with pytest.raises(
        UserError, match=r"\d+ missing: conv1\.bn\.running_mean.* and \d+ more; \d+ unexpected"
    ):
        build_model(ARCH, weights=str(path))
    pooled = tmp_path / "own_pool.pt"
    torch.save({"model": filled(embedding="pool").state_dict()}, pooled)
    with pytest.raises(UserError, match=r"6 missing: backbone\.fc\.0\.weight.*; 5 unexpected: neck\.weight"):
        build_model(ARCH, embedding="fc", weights=str(pooled))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pth is no file.*'imagenet' or the path"):
        build_model(ARCH, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match="is no file"):
        build_model(ARCH, weights=str(tmp_path))
    for name, data in (("text.pth", b"hello there"), ("empty.pth", b""), ("x.safetensors", b"\0" * 64)):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{name} is damaged or no") as caught:
            build_model(ARCH, weights=str(path))
        assert "\n" not in str(caught.value) and "trust" not in str(caught.value)
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(_torchreid_state(filled()), whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut\.pth is damaged"):
        build_model(ARCH, weights=str(cut))
    for content, kind in (([1, 2], "a list"), (torch.zeros(2), "a Tensor"), ({}, "a dict")):
        torch.save(content, whole)
        with pytest.raises(UserError, match=f"holds no weights by name, but {kind}"):
            build_model(ARCH, weights=str(whole))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "nan.pth"
    state = _torchreid_state(filled())
    state["conv5.conv.weight"][0, 0] = float("nan")
    torch.save(state, path)
    with pytest.raises(
        UserError, match=r"'conv5\.conv\.weight' in .*nan\.pth has values that are not finite"
    ):
        build_model(ARCH, weights=str(path))


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(
        UserError, match=r"of resnet18 could not be had.*no route.*download https://\S+ where"
    ) as error:
        build_model("resnet18", weights="imagenet")
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match="which has no osnet_x0_25; give the path of torchreid's published file"
    ):
        build_model(ARCH, weights="imagenet")
    # A file that torchvision has downloaded before is used without a network.
    source = filled("resnet18", "pool")
    state = dict(source.backbone.state_dict())
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(state, cache / "resnet18-f37072fd.pth")
    model = build_model("resnet18", weights="imagenet")
    assert_equal(model.backbone.state_dict(), source.backbone.state_dict())
    backbone, neck = model.parameter_groups(0.1, 0.1)
    assert backbone["lr"] == pytest.approx(0.01) and neck["lr"] == 0.1
    # The cached file may not run code either.
    torch.save(_Malicious(tmp_path / "ran"), cache / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match="could not be had"):
        build_model("resnet18", weights="imagenet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_plain_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pth"
    torch.save({"conv1.conv.weight": torch.eye(3).to_sparse()}, path)
    with pytest.raises(UserError, match="no plain dense tensor"):
        read_state_dict(str(path))


def test_state_is_returned_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    torch.save({"model": {"module.a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}}, path)
    state = read_state_dict(str(path))
    assert list(state) == ["a", "b"]
    assert state["a"].tolist() == [1.0, 2.0] and state["b"].item() == 3


def test_values_that_are_no_weights(tmp_path: Path) -> None:
    state = dict(filled().backbone.state_dict())
    for value, message in (
        (torch.zeros(16, 3, 7, 7, dtype=torch.int64), "has values of torch.int64, needed are floating-point"),
        (torch.zeros(16, 3, 7, 7, dtype=torch.complex64), "has values of torch.complex64"),
        (torch.zeros(16, 3, 7, 7, device="meta"), "is no plain dense tensor"),
        (
            torch.quantize_per_tensor(torch.zeros(16, 3, 7, 7), 0.1, 0, torch.qint8),
            "is no plain dense tensor",
        ),
        ("text", "is no tensor but a str"),
    ):
        torch.save({**state, "conv1.conv.weight": value}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"'conv1.conv.weight' in .*w.pth {message}"):
            build_model(ARCH, embedding="fc", weights=tmp_path / "w.pth")
