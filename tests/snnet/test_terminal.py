"""What commands print: escapes for what acts on a terminal, and streams that are gone or full."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from snnet.errors import UserError
from snnet.runtime import show_warnings_as_lines
from snnet.system import terminal
from snnet.system.command import run_command
from snnet.system.progress import say
from snnet.system.terminal import answer, printable, tell
from tests.snnet.tiny_run import environment

HOSTILE = "a\x1b[2Jb\nc\r\x07\x9b1m\u202ed\u2028e\udcff\x7f\t"
ESCAPED = r"a\x1b[2Jb\nc\r\x07\x9b1m\u202ed\u2028e\udcff\x7f\t"


@pytest.fixture(autouse=True)
def nothing_is_lost_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_lost", False)


def test_what_acts_on_a_terminal_is_an_escape() -> None:
    assert printable(HOSTILE) == ESCAPED and printable(Path("a\nb")) == r"a\nb"
    for text in ("data/Zoë/图像 1.jpg", "C:\\new\\table", "a\u00a0b\u3000c", "'\"", ""):
        assert printable(text) == text


def test_every_way_to_print_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    show_warnings_as_lines()

    def main() -> None:
        say(HOSTILE, "next")
        tell(HOSTILE)
        answer(HOSTILE)
        sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "f", 1))
        raise UserError(HOSTILE)

    with pytest.raises(SystemExit):
        run_command(main)
    printed = capsys.readouterr()
    assert printed.out == f"{ESCAPED}\nnext\n{ESCAPED}\n{ESCAPED}\n"
    assert printed.err == f"warning: {ESCAPED}\nerror: {ESCAPED}\n"


class Broken(io.StringIO):
    """A stream that does not take what is flushed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, {28: "No space left on device", 32: "Broken pipe"}[self.number])


@pytest.mark.parametrize(
    ("number", "warning"), [(32, ""), (28, "warning: lines for stdout are lost: No space left on device\n")]
)
def test_lines_that_are_lost_stop_no_command(
    number: int, warning: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Broken(number))

    def main() -> None:
        say("epoch 0")
        say("epoch 1")
        tell("run folder: runs/a")

    run_command(main)
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize("how", ["answer", "print", "help"])
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(32, 141, ""), (28, 2, "error: cannot write to stdout: No space left on device\n")],
)
def test_an_answer_that_is_lost_ends_the_command(
    number: int, status: int, line: str, how: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdout", Broken(number))

    def main() -> None:
        answer("rank1") if how == "answer" else print("rank1")
        if how == "help":
            sys.exit(0)

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert (stopped.value.code, capsys.readouterr().err) == (status, line)


def test_a_stderr_that_is_gone_changes_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise UserError("unheard")

    monkeypatch.setattr("sys.stderr", Broken(32))
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "module", ["snnet.train", "snnet.label"]
)  # whose help is longer and shorter than a buffer
@pytest.mark.parametrize(
    ("redirection", "status", "output"),
    [
        ("| true", 141, ""),
        (">/dev/full", 2, "error: cannot write to stdout: No space left on device\n"),
        (">/dev/full 2>&1", 2, ""),
        (">&-", 0, ""),
        ("2>&-", 0, "usage"),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_streams_of_the_shell(redirection: str, status: int, output: str, module: str) -> None:
    command = f"{sys.executable} -m {module} --help {redirection}; exit ${{PIPESTATUS[0]}}"
    # The reader is gone for certain before there is something to read.
    command = command.replace("| true", "| (exec <&-; sleep 0.01)")
    process = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False
    )
    assert process.returncode == status
    assert (process.stdout + process.stderr)[:5] == output[:5]
    assert "Traceback" not in process.stderr and "Exception ignored" not in process.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from snnet.system.terminal import open_streams; open_streams()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); os.write(2, b'of a library'); print('x', file=sys.stderr)\n"
        "print('y'); sys.exit(file.fileno())"
    )
    process = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], env=environment(), check=False
    )
    assert process.returncode == 3 and (tmp_path / "file").read_text() == ""
