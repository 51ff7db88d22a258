"""What commands make of errors that are the user's to mend."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnet import runtime
from snnet.errors import UserError
from snnet.runtime import kernels_line
from snnet.system.command import run_command
from snnet_kernels.backends import BACKENDS, backend_info, instruction_set
from tests.forks import environment_of_tests, python
from tests.snnet.command_lines import run_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("--flag 1: must be 2"), "error: --flag 1: must be 2\n"),
        (
            NotImplementedError("SNNET_BACKEND=cuda does not serve mplp for cpu tensors"),
            "error: SNNET_BACKEND=cuda does not serve mplp for cpu tensors\n",
        ),
        (PermissionError(13, "Permission denied", "a/b"), "error: cannot use a/b: Permission denied\n"),
        (OSError(5, "Input/output error", "a/b"), "error: cannot use a/b: Input/output error\n"),
    ],
)
def test_one_line_and_status_2(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2 and capsys.readouterr().err == line


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_a_terminal_cannot_show_are_printed_as_escapes(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(err, encoding))

    def main() -> None:
        print("ä/\udcff.jpg", flush=True)
        raise UserError("ö/\udcff.jpg")

    with pytest.raises(SystemExit):
        run_command(main)
    sys.stderr.flush()
    a, o = ("ä", "ö") if encoding == "utf-8" else (r"\xe4", r"\xf6")
    assert out.getvalue().decode() == f"{a}/\\udcff.jpg\n"
    assert err.getvalue().decode() == f"error: {o}/\\udcff.jpg\n"


@pytest.mark.parametrize(
    "error",
    [PermissionError("of no file"), OSError(5, "no path"), ValueError("ours"), NotImplementedError("ours")],
)
def test_other_errors_are_the_programs_own(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        run_command(main)


LONG = "n" * 300  # more than any file system takes


@pytest.mark.parametrize(
    "words",
    [
        f"label {LONG}.npz --output l.npz",
        f"label f.npz --output {LONG}.npz",
        f"search --gallery {LONG} --query q.png --checkpoint run",
        f"search --gallery . --query {LONG} --checkpoint run",
        f"search --gallery . --query q.png --checkpoint {LONG}",
        f"evaluate --checkpoint {LONG}",
        f"extract --checkpoint {LONG} --output f.npz",
        f"export --arch osnet_x0_25 --weights {LONG} --output w.safetensors",
        f"train --resume {LONG}",
        f"train --dataset folder --data-dir . --output-dir {LONG}",
        f"train --config {LONG}",
        f"report {LONG}",
    ],
)
def test_a_name_that_is_too_long_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("q.png")
    np.savez("f.npz", features=np.eye(3, dtype=np.float32))
    with pytest.raises(SystemExit) as stopped:
        run_line(*words.split())
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("error: ") and LONG in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "q.png"]


@pytest.mark.parametrize("module", ["train", "label"])
def test_a_backend_that_there_is_not_is_one_line(module: str) -> None:
    words = ["f.npz", "--output", "l.npz"] if module == "label" else []
    answer = python("-m", f"snnet.{module}", *words, environment=environment_of_tests(SNNET_BACKEND="foo"))
    assert answer == (2, "", f"error: SNNET_BACKEND must be one of {', '.join(BACKENDS)}, got 'foo'\n")


def test_kernels_are_one_line() -> None:
    line = kernels_line(torch.device("cpu"))
    if backend_info().operations["mplp"]["cpu"] == "cpu":
        assert line.startswith(f"snnet_kernels: CPU kernels ({instruction_set()}")
    else:
        assert line.startswith("snnet_kernels: plain PyTorch")
    assert line.count("\n") == 0


def test_kernels_are_those_of_the_device(monkeypatch) -> None:
    served = {0: {"mplp": ("triton",), "pack_labels": ("cuda",)}, 1: {"mplp": ("triton",)}}
    monkeypatch.setattr(runtime, "servers_on", lambda device: served[device.index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    first, second = (torch.device("cuda", number) for number in served)
    assert kernels_line(first) == "snnet_kernels: CUDA and Triton kernels"
    assert kernels_line(second) == "snnet_kernels: Triton kernels"
    recorded = runtime.environment(runtime.Placement(first, amp=False, channels_last=False))["backends"]
    assert recorded == {"mplp": "triton", "pack_labels": "cuda"}
