"""One kind of progress bar, seen on a terminal only."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
from torch import device

from snnet import evaluate, train
from snnet.config.commands import EvaluateCommand, TrainCommand
from snnet.data import decode_images
from snnet.runtime import kernels_line
from snnet.system.progress import bars_shown, progress, say, set_quiet
from tests.snnet.few_images import draw_images
from tests.snnet.tiny_run import command_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    assert sum(progress(range(5), "counting", unit="image")) == 10
    return stream.getvalue()


def test_a_bar_names_the_work_and_the_time_left_and_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, Terminal())
    assert text.startswith("\rcounting:   0%|") and "0/5 [00:00<?" in text
    assert text.split("\r")[-2].strip() == ""


def test_nothing_is_drawn_into_a_file_or_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, io.StringIO()) == "" and not bars_shown()
    set_quiet(True)
    assert drawn(monkeypatch, Terminal()) == "" and not bars_shown()
    set_quiet(False)
    assert bars_shown()


def test_each_pass_over_the_images_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images(tmp_path)
    styled = dataclasses.replace(images, styles=tuple((path,) for path in images.paths))
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    decode_images(styled)
    names = re.findall(r"\r([\w ]+):   0%\| +\| 0/7 ", stream.getvalue())
    assert names == ["decoding CamStyle images", "reading headers", "decoding"]


def test_lines_are_left_out_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    say("heard")
    set_quiet(True)
    say("unheard")
    assert capsys.readouterr().out == "heard\n"


def test_quiet_commands_print_their_results_alone(
    tiny_options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = command_line(
        {**tiny_options, "epochs": 1, "label_start_epoch": 0, "output_dir": tmp_path / "run"}
    )
    train.main(TrainCommand.parse(["--quiet", *options]))
    after_training = capsys.readouterr()
    lines = after_training.out.splitlines()
    before, after = (float(line.split()[4]) for line in lines[1:3])
    assert [line.split(":")[0] for line in lines[4:-1]] == (
        ["training made the network worse"] if after < before else []
    )
    assert lines[-1] == f"run folder: {tmp_path / 'run'}"
    assert lines[0].split() == ["rank1", "rank5", "rank10", "mAP", "mINP"]
    assert after_training.err == ""
    train.main(TrainCommand.parse([*options, f"--output-dir={tmp_path / 'again'}"]))
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"run folder: {tmp_path / 'again'}" and told.count(kernels_line(device("cpu"))) == 1
    assert not any("pack_labels" in line for line in told)
    evaluate.main(EvaluateCommand.parse(["--quiet", "--checkpoint", str(tmp_path / "run")]))
    evaluated = capsys.readouterr()
    assert evaluated.out.splitlines()[1].split()[1:] == lines[2].split()[1:] and evaluated.err == ""
