"""``snnet.export``: the written network gives PyTorch's features."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from snnet import export as command
from snnet.config.commands import EvaluateCommand, ExportCommand
from snnet.errors import UserError
from snnet.export import export
from snnet.models import build_model
from snnet.training.checkpoint import load_checkpoint

needs_onnx = pytest.mark.skipif(
    any(command.importlib.util.find_spec(name) is None for name in command.ONNX_PACKAGES),
    reason="needs the extra 'onnx'",
)
MODEL = ("--weights", "none", "--seed", 3, "--height", 32, "--width", 16)


def exported(*words: object) -> list[str]:
    return export(ExportCommand.parse([str(word) for word in words]))


@needs_onnx
@pytest.mark.parametrize(
    ("arch", "options", "opset", "ir"),
    [
        ("osnet_ain_x0_25", ("--embedding", "fc", "--retrieval-feature", "after"), 18, 8),
        ("resnet18", ("--opset", 20), 20, 9),
    ],
)
def test_onnx_gives_pytorchs_features_for_any_batch(
    arch: str, options: tuple[object, ...], opset: int, ir: int, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "model.onnx"
    lines = exported("--arch", arch, *MODEL, *options, "--output", path)
    torch.manual_seed(3)
    model = build_model(arch, embedding="fc" if "fc" in options else "pool").eval()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 3, 32, 16], "tensor(float)")
    assert [(o.name, o.shape) for o in given] == [("features", ["batch", model.feature_dim])]
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 32, 16)
        with torch.no_grad():
            wanted = model.retrieve(images, after_neck="after" in options).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)

    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["mean"] == "0.485 0.456 0.406" and metadata["std"] == "0.229 0.224 0.225"
    assert (metadata["height"], metadata["width"], metadata["channels"]) == ("32", "16", "RGB")
    assert metadata["retrieval_feature"] == ("after" if "after" in options else "before")
    assert "(pixel / 255 - mean) / std with mean 0.485 0.456 0.406" in metadata["description"]
    assert f"[batch, 3, 32, 16], RGB, resized {metadata['resize']}" in lines[1]
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in lines[2] and "rows of length 1" in lines[3]
    assert os.listdir(tmp_path) == ["model.onnx"]  # the weights are inside
    # Nothing of the machine that it was made on.
    assert os.sep.join(Path(command.__file__).parts[-2:]).encode() not in path.read_bytes()
    written = onnx.load(path)
    assert len(written.graph.node[0].metadata_props) == 0
    # The lowest that there are, but for what is asked for: an older runtime refuses a file of a later version.
    assert ([(o.domain, o.version) for o in written.opset_import], written.ir_version) == ([("", opset)], ir)
    assert f", opset {opset}; onnxruntime" in lines[0]


@needs_onnx
def test_an_opset_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for opset, message in (
        (17, "--opset: must be a whole number >= 18 and < 1000, got '17'"),
        (999, r"--opset must be <= \d+ .*, got 999"),
    ):
        with pytest.raises(UserError, match=message):
            exported("--arch", "resnet18", *MODEL, "--output", path, "--opset", opset)
    assert os.listdir(tmp_path) == []


@needs_onnx
def test_a_network_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_to_onnx", lambda *_: b"")
    for difference in (2e-4, float("nan")):
        monkeypatch.setattr(command, "_largest_difference", lambda *_, found=difference: found)
        with pytest.raises(UserError, match=r"m.onnx is not written: onnxruntime's features differ .* 1e-04"):
            exported("--arch", "resnet18", *MODEL, "--output", tmp_path / "m.onnx")
    monkeypatch.setattr(command, "_largest_difference", lambda *_: 9e-5)
    exported("--arch", "resnet18", *MODEL, "--output", tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


def raising(error: Exception, cause: Exception | None = None) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error from cause

    return fail


@needs_onnx
@pytest.mark.parametrize(
    ("function", "fail", "message"),
    [
        (
            "torch.export.export",
            raising(RuntimeError("wrapped\nin lines"), ValueError("a size that varies\nmore")),
            r"torch \S+ cannot trace resnet18 \(ValueError: a size that varies\)",
        ),
        (
            "torch.onnx.export",
            raising(KeyError("aten::op")),
            r"torch \S+ and onnx \S+ cannot write resnet18 with --opset 18 \(KeyError: 'aten::op'\)",
        ),
        ("torch.onnx.export", lambda *_, **__: None, r"\(RuntimeError: torch.onnx.export returned nothing\)"),
        ("onnx.checker.check_model", raising(TypeError("bad\x1b[0m")), r"\(TypeError: bad\\x1b\[0m\)"),
        (
            "onnxruntime.InferenceSession",
            raising(RuntimeError("opset 18 is under development\nmore")),
            r"onnxruntime \S+ cannot run resnet18 with --opset 18 \(RuntimeError: opset 18 is under development\)",
        ),
    ],
)
def test_what_others_refuse_is_one_line(
    function: str, fail: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function, fail)
    path = tmp_path / "m.onnx"
    with pytest.raises(UserError, match=f"^{path} is not written: .*{message}$") as caught:
        exported("--arch", "resnet18", *MODEL, "--output", path)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@needs_onnx
def test_a_later_opset_that_cannot_be_run_may_be_lowered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_to_onnx", lambda *_: b"")
    message = (
        r"cannot run resnet18 with --opset 20 \(.*\); give a lower --opset, or install a later onnxruntime$"
    )
    with pytest.raises(UserError, match=message):
        exported("--arch", "resnet18", *MODEL, "--opset", 20, "--output", tmp_path / "m.onnx")


@needs_onnx
@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("snnet.export._metadata", AttributeError("'NoneType' object has no attribute 'after_neck'")),
        ("onnx.helper.set_model_props", AttributeError("'NoneType' object has no attribute 'props'")),
        ("torch.onnx.export", MemoryError("Unable to allocate 9.1 GiB")),
        ("onnxruntime.InferenceSession", MemoryError("Unable to allocate 9.1 GiB")),
    ],
)
def test_what_is_not_of_others_is_no_refusal(
    function: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function, raising(error))
    with pytest.raises(type(error)) as caught:
        exported("--arch", "resnet18", *MODEL, "--output", tmp_path / "m.onnx")
    assert caught.value is error and os.listdir(tmp_path) == []


@needs_onnx
def test_the_difference_is_to_the_network_as_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fused attention that the file does not have; and one that is no number is no small one."""
    features = torch.nn.functional.normalize(torch.ones(1, 512))
    monkeypatch.setattr(torch.nn.Module, "fused_attn", True, raising=False)
    monkeypatch.setattr(
        command._Retrieval,
        "forward",
        lambda self, images: features.expand(len(images), -1) * (1.0 if self.fused_attn else 0.5),
    )
    found = features.numpy()

    def run(names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.repeat(found, len(given["images"]), axis=0)]

    monkeypatch.setattr(command, "_to_onnx", lambda *_: b"")
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: SimpleNamespace(run=run))
    lines = exported("--arch", "resnet18", *MODEL, "--output", tmp_path / "m.onnx")
    assert lines[0].endswith("and PyTorch differ by at most 0.0e+00")
    found = found * np.nan
    with pytest.raises(
        UserError, match="onnxruntime's features differ from PyTorch's by nan, more than 1e-04"
    ):
        exported("--arch", "resnet18", *MODEL, "--output", tmp_path / "n.onnx")


@needs_onnx
def test_attention_that_torch_cannot_write_fused_is_written_in_parts(tmp_path: Path) -> None:
    """The fused operation with queries of five dimensions is none that torch writes as ONNX."""
    pytest.importorskip("timm")
    lines = exported("--arch", "timm:nest_tiny", "--weights", "none", "--output", tmp_path / "m.onnx")
    assert lines[0].startswith(f"{tmp_path / 'm.onnx'}: timm:nest_tiny, ") and "differ by at most" in lines[0]
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_safetensors_are_the_weights_to_the_bit_and_load_again(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "$my weights.safetensors"
    lines = exported("--checkpoint", finished_run, "--output", path)
    state = load_checkpoint(finished_run)["model"]
    model = build_model("osnet_x0_25", weights=str(path))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert lines[0].startswith(f"{path}: {len(state)} tensors of osnet_x0_25, embedding pool")
    flags = shlex.split(lines[1].removeprefix("  load it with "))
    assert EvaluateCommand.parse(flags).given == {
        "arch": "osnet_x0_25", "embedding": "pool", "weights": str(path), "height": 32, "width": 16,
        "retrieval_feature": "before",
    }  # fmt: skip
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["mean"] == "[0.485, 0.456, 0.406]" and file.metadata()["height"] == "32"


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    if any(find(name) is None for name in ("onnx", "onnxruntime")):
        pytest.skip("more of the extra 'onnx' is missing")
    with pytest.raises(
        UserError, match=r"needs onnxscript, which .* pip install '\.\[onnx\]' in the checkout$"
    ):
        exported("--arch", "resnet18", *MODEL, "--output", tmp_path / "m.onnx")


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    arch = ("--arch", "resnet18", *MODEL)
    for words, message in (
        (arch, "^--output FILE is missing: what to write: .onnx or .safetensors$"),
        ((*arch, "--output", tmp_path / "m.pt"), r"m.pt: the name must end in .onnx or .safetensors"),
        ((*arch, "--output", tmp_path / "gone" / "m.onnx"), "there is no folder"),
        (("--output", "m.onnx"), "no network to use: give --checkpoint, or --arch and --weights"),
        (("--checkpoint", tmp_path, "--output", tmp_path / "m.safetensors"), "no checkpoint at"),
        (
            ("--arch", "resnet17", "--output", tmp_path / "m.safetensors"),
            "--arch: must be one of resnet18, .*, got 'resnet17'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            exported(*words)
    assert os.listdir(tmp_path) == []


@needs_onnx
def test_a_size_that_the_network_cannot_take_is_an_error(tmp_path: Path) -> None:
    small = ("--arch", "resnet18", "--weights", "none", "--height", 16, "--width", 16)
    with pytest.raises(UserError, match="images of 16x16 are too small for the network"):
        exported(*small, "--output", tmp_path / "m.onnx")


def test_the_command_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.safetensors"
    words = ["--arch", "osnet_x0_25", *map(str, MODEL), "--output", str(path), "--quiet"]
    command.main(ExportCommand.parse(words))
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{path}: ") and printed.err == ""
    assert printed.out.splitlines()[0].endswith(f"{path.stat().st_size / 1e6:.1f} MB")
