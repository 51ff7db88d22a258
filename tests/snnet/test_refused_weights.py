"""Files of weights that are refused: with code, damaged, of another network, with values that are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from snnet.errors import UserError
from snnet.models import ReIDModel, build_model
from snnet.models.weights import load_weights, read_state_dict
from tests.snnet.weight_files import ARCH, Malicious, assert_equal, filled, torchreid_state


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_refused(tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "weights.pth", tmp_path / "ran"
    content = {"state_dict": torchreid_state(filled()), "extra": Malicious(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"extra": Malicious(marker)}, protocol=2))
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
    torch.save(torchreid_state(filled("osnet_ain_x0_25")), path)
    with pytest.raises(
        UserError, match=r"\d+ missing: conv1\.bn\.running_mean.* and \d+ more; \d+ unexpected"
    ):
        build_model(ARCH, weights=str(path))
    pooled = tmp_path / "own_pool.pt"
    torch.save({"model": filled(embedding="pool").state_dict()}, pooled)
    with pytest.raises(UserError, match=r"6 missing: backbone\.fc\.0\.weight.*; 5 unexpected: neck\.weight"):
        build_model(ARCH, embedding="fc", weights=str(pooled))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for arch, needed in (
        (ARCH, f"torchreid's file of {ARCH} (its MODEL_ZOO has it), or none for random weights"),
        ("resnet18", "a file of weights, imagenet, or none for random weights"),
    ):
        with pytest.raises(UserError) as missing:
            build_model(arch, weights=str(tmp_path / "absent.pth"))
        assert str(missing.value) == f"weights: {tmp_path / 'absent.pth'} is no file; give {needed}"
    np.savez(tmp_path / "f.npz", features=np.eye(3))
    np.save(tmp_path / "f.npy", np.eye(3))
    for name in ("f.npz", "f.npy"):
        with pytest.raises(UserError) as arrays:
            build_model(ARCH, weights=str(tmp_path / name))
        assert (
            str(arrays.value)
            == f"weights: {tmp_path / name} is a {name[1:]} of features or labels, no weights"
        )
    with pytest.raises(UserError, match="is no file"):
        build_model(ARCH, weights=str(tmp_path))
    for name, data in (("text.pth", b"hello there"), ("empty.pth", b""), ("x.safetensors", b"\0" * 64)):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{name} is damaged or no") as caught:
            build_model(ARCH, weights=str(path))
        assert "\n" not in str(caught.value) and "trust" not in str(caught.value)
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(torchreid_state(filled()), whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut\.pth is damaged"):
        build_model(ARCH, weights=str(cut))
    for content, kind in (([1, 2], "a list"), (torch.zeros(2), "a Tensor"), ({}, "a dict")):
        torch.save(content, whole)
        with pytest.raises(UserError, match=f"holds no weights by name, but {kind}"):
            build_model(ARCH, weights=str(whole))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "nan.pth"
    state = torchreid_state(filled())
    state["conv5.conv.weight"][0, 0] = float("nan")
    torch.save(state, path)
    with pytest.raises(
        UserError, match=r"'conv5\.conv\.weight' in .*nan\.pth has values that are not finite"
    ):
        build_model(ARCH, weights=str(path))
