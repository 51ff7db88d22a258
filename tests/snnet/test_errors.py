"""What commands make of errors that are the user's to mend."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from snnet.errors import UserError
from snnet.runtime import kernels_line
from snnet.system.command import run_command
from snnet_kernels.backends import BACKENDS, backend_info, instruction_set
from tests.forks import environment_of_tests, python


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("--flag 1: must be 2"), "error: --flag 1: must be 2\n"),
        (
            NotImplementedError("SNNET_BACKEND=cuda does not serve mplp for cpu tensors"),
            "error: SNNET_BACKEND=cuda does not serve mplp for cpu tensors\n",
        ),
        (PermissionError(13, "Permission denied", "a/b"), "error: cannot read a/b: Permission denied\n"),
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
    "error", [PermissionError("of no file"), ValueError("ours"), NotImplementedError("ours")]
)
def test_other_errors_are_the_programs_own(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_command(main)


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
