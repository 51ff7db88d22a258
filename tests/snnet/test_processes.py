"""Commands in several processes: as one, with one voice, and none left waiting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from snnet.config.commands import EvaluateCommand, ExtractCommand
from snnet.errors import UserError
from snnet.evaluate import evaluate
from snnet.extract import extract
from snnet.retrieval.feature_files import load_features
from snnet.system.processes import Processes
from tests.several import run_processes

GONE = "another process of this command has ended, and so does this one\n"


def words(data: Path, output: Path, *others: object) -> list[str]:
    return [*network(data), "--output", str(output), *map(str, others)]


def network(data: Path) -> list[str]:
    network = (
        "--arch",
        "osnet_x0_25",
        "--weights",
        "none",
        "--height",
        32,
        "--width",
        16,
        "--batch-size",
        16,
    )
    found = ("--dataset", "market1501", "--data-dir", data, "--device", "cpu", "--workers", 0)
    return [str(word) for word in (*network, *found)]


@pytest.mark.parametrize(
    ("items", "block", "count", "shares"),
    [
        (48, 16, 2, [(0, 16), (16, 48)]),
        (50, 16, 3, [(0, 16), (16, 32), (32, 50)]),
        (10, 16, 3, [(0, 0), (0, 0), (0, 10)]),
        (0, 4, 2, [(0, 0), (0, 0)]),
    ],
)
def test_shares_are_whole_blocks_in_order(
    items: int, block: int, count: int, shares: list[tuple[int, int]]
) -> None:
    found = [Processes(rank, count).share(items, block) for rank in range(count)]
    assert [(share.start, share.stop) for share in found] == shares


def test_three_processes_extract_what_one_does(tiny_market: Path, tmp_path: Path) -> None:
    wanted = extract(ExtractCommand.parse(words(tiny_market, tmp_path / "one.npz")))
    answers = run_processes(3, "snnet.extract", words(tiny_market, tmp_path / "three.npz"))
    assert [answer.returncode for answer in answers] == [0, 0, 0]
    assert [answer.stderr for answer in answers] == ["", "", ""]
    assert [answer.stdout for answer in answers[1:]] == ["", ""]
    assert answers[0].stdout.splitlines()[-1] == f"{tmp_path / 'three.npz'}: 112 features of 128 dimensions"
    found = load_features(tmp_path / "three.npz")
    np.testing.assert_array_equal(found.features, wanted.features)
    assert (found.names, found.splits, found.metadata) == (wanted.names, wanted.splits, wanted.metadata)
    np.testing.assert_array_equal(found.pids, wanted.pids)
    np.testing.assert_array_equal(found.camids, wanted.camids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "three.npz"]


def test_three_processes_evaluate_what_one_does(tiny_market: Path, tmp_path: Path) -> None:
    bad = tmp_path / "data"
    shutil.copytree(tiny_market, bad)
    (bad / "bounding_box_test" / "0108_c2s1_000002_00.png").write_bytes(b"")  # the last rank's
    given = [*network(bad), "--skip-bad-images", "--rerank", "--roc", "--query-expansion", "2", "--json"]
    with pytest.warns(UserWarning, match="left out 1 of 48 images"):
        wanted = evaluate(EvaluateCommand.parse(given))
    answers = run_processes(3, "snnet.evaluate", given)
    assert [answer.returncode for answer in answers] == [0, 0, 0]
    assert json.loads(answers[0].stdout) == wanted
    assert [answer.stdout for answer in answers[1:]] == ["", ""]
    assert [answer.stderr[:40] for answer in answers[1:]] == ["", "rank 2: warning: left out 1 of 16 images"]


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (["--split", "val"], "--split: must be one of"),  # before torch is imported
        (["--checkpoint", "gone"], "no checkpoint at gone"),
    ],
)
def test_an_error_of_all_is_told_once(
    others: list[str], line: str, tiny_market: Path, tmp_path: Path
) -> None:
    given = words(tiny_market, tmp_path / "f.npz")
    if "--checkpoint" in others:
        given = given[4:]
    answers = run_processes(2, "snnet.extract", [*given, *others])
    told = [answer.stderr for answer in answers if answer.stderr not in ("", GONE, f"rank 1: {GONE}")]
    assert len(told) == 1 and told[0].count("\n") == 1 and line in told[0]
    assert {answer.returncode for answer in answers} <= {1, 2}
    assert [answer.stdout for answer in answers] == ["", ""]


def test_an_error_of_one_is_told_by_it_and_ends_the_others(tiny_market: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_market, data)
    last = data / "bounding_box_train" / "0008_c2s1_000002_00.png"
    last.write_bytes(b"")
    first, second = run_processes(2, "snnet.extract", words(data, tmp_path / "f.npz", "--quiet"))
    assert first == (1, "", GONE)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == (
        f"rank 1: error: cannot read image '{last}': the file is empty "
        "(repair or remove it, or skip such files with --skip-bad-images)\n"
    )
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others(rank: int, tiny_market: Path, tmp_path: Path) -> None:
    hook = (
        f"if rank == {rank}:\n import os, snnet.retrieval.trained as trained\n"
        " trained.TrainedModel.features = lambda *_: os.kill(os.getpid(), 9)"
    )
    answers = run_processes(2, "snnet.extract", words(tiny_market, tmp_path / "f.npz", "--quiet"), hook)
    assert answers[rank].returncode == -9
    assert answers[1 - rank] == (1, "", GONE if rank else f"rank 1: {GONE}")
    assert list(tmp_path.iterdir()) == []


def test_gpus_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Processes(0, 2, 0).check_device(torch.device("cuda"))
    Processes(1, 2, 1).check_device(torch.device("cpu"))
    Processes().check_device(torch.device("cuda:0"))
    with pytest.raises(UserError, match=r"^process 2 of this machine has no GPU: torch sees 1$"):
        Processes(1, 2, 1).check_device(torch.device("cuda"))
    with pytest.raises(
        UserError, match=r"^--device cuda:0 is one GPU for 2 processes: with cuda each has its own$"
    ):
        Processes(0, 2, 0).check_device(torch.device("cuda:0"))
