"""Commands in several processes: as one, with one voice, and none left waiting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from snnet.config.commands import EvaluateCommand, ExtractCommand, LabelCommand
from snnet.config.options import OPTIONS, config_from
from snnet.errors import ProcessesEnded, UserError
from snnet.evaluate import evaluate
from snnet.extract import extract
from snnet.label import label, label_table
from snnet.retrieval.classes import class_summary
from snnet.retrieval.feature_files import FeatureSet, load_features, save_features
from snnet.runtime import check_same_options, choose_device
from snnet.system.command import parse_early
from snnet.system.meeting import _agreed_word
from snnet.system.processes import Processes, _cause, several_processes
from snnet.train import _own_folder, seed_masks, train
from snnet.training.learner import Learner
from snnet_kernels.testing import clustered_features
from tests.forks import run_processes, start_processes
from tests.snnet.tiny_run import GONE, SILENT, command_line, without_cause


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
    answers = run_processes(3, "-m", "snnet.extract", *words(tiny_market, tmp_path / "three.npz"))
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
    images = sorted((bad / "bounding_box_test").iterdir())[-16:]  # all of the last rank's
    for image in images:
        image.write_bytes(b"")
    given = [*network(bad), "--skip-bad-images", "--rerank", "--roc", "--query-expansion", "2", "--json"]
    reasons = [f"cannot read image '{image}': the file is empty" for image in images[:5]]
    with pytest.warns(UserWarning, match="left out 16 of 48 images"):
        wanted = evaluate(EvaluateCommand.parse(given))
    answers = run_processes(3, "-m", "snnet.evaluate", *given)
    assert [answer.returncode for answer in answers] == [0, 0, 0]
    assert json.loads(answers[0].stdout) == wanted
    assert [answer.stdout for answer in answers[1:]] == ["", ""]
    assert [answer.stderr for answer in answers[1:]] == ["", ""]
    assert [line for line in answers[0].stderr.splitlines() if "left out" in line] == [
        f"warning: left out 16 of 48 images: {'; '.join(reasons)}; and 11 more"
    ]


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (["--split", "val"], "--split: must be one of"),  # before torch is imported
        (["--checkpoint", "gone"], "no checkpoint at gone"),
        (["--split", "query", "--skip-bad-images", "--quiet"], "none of the 16 images can be read"),
    ],
)
def test_an_error_of_all_is_told_once(
    others: list[str], line: str, tiny_market: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_market, data)
    for image in (data / "query").iterdir():
        image.write_bytes(b"")
    given = words(data, tmp_path / "f.npz")
    if "--checkpoint" in others:
        given = given[4:]
    late = (
        "if rank == 1:\n import time, snnet.system.processes as processes\n"
        " ask = processes._is_first_to_tell\n"
        " processes._is_first_to_tell = lambda *of: time.sleep(0.3) or ask(*of)"
    )
    answers = run_processes(2, "-m", "snnet.extract", *given, *others, hook=late)
    told = [without_cause(answer).stderr for answer in answers]
    told = [text for text in told if text not in ("", GONE, f"rank 1: {GONE}")]
    assert len(told) == 1 and told[0].count("\n") == 1 and line in told[0]
    assert {answer.returncode for answer in answers} <= {1, 2}
    assert [answer.stdout for answer in answers] == ["", ""]


def test_an_error_of_one_is_told_by_it_and_ends_the_others(tiny_market: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_market, data)
    last = data / "bounding_box_train" / "0008_c2s1_000002_00.png"
    last.write_bytes(b"")
    first, second = run_processes(2, "-m", "snnet.extract", *words(data, tmp_path / "f.npz", "--quiet"))
    assert without_cause(first) == (1, "", GONE)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == (
        f"rank 1: error: cannot read image '{last}': the file is empty "
        "(repair or remove it, or skip such files with --skip-bad-images)\n"
    )
    assert not (tmp_path / "f.npz").exists()


# Rank 1 is given another word than the others.
OTHER_WORD = """
if rank == 1:
    from snnet.config.commands import {command} as command
    parse = command.parse
    command.parse = lambda words: parse([{new!r} if word == {old!r} else word for word in words])
"""


def test_processes_with_other_images_write_nothing(tiny_market: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_market, other)
    next((other / "query").iterdir()).unlink()
    hook = OTHER_WORD.format(command="ExtractCommand", old=str(tiny_market), new=str(other))
    answers = run_processes(
        2, "-m", "snnet.extract", *words(tiny_market, tmp_path / "f.npz", "--quiet"), hook=hook
    )
    told = "error: the number of query images is 16 on rank 0 and 15 on rank 1: all processes need the same\n"
    assert sorted(answer.stderr.removeprefix("rank 1: ") for answer in answers) == ["", told]
    assert [answer.returncode for answer in answers] == [2, 2]
    assert not (tmp_path / "f.npz").exists()


def test_processes_with_other_options_do_not_train(tiny_options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = command_line({**tiny_options, "lr": 0.001, "output_dir": str(folder), "quiet": True})
    hook = OTHER_WORD.format(command="TrainCommand", old="0.001", new="0.011")
    answers = run_processes(2, "-m", "snnet.train", *given, hook=hook)
    told = "error: --lr is 0.001 on rank 0 and 0.011 on rank 1: all processes need the same\n"
    assert sorted(answer.stderr.removeprefix("rank 1: ") for answer in answers) == ["", told]
    assert [answer.returncode for answer in answers] == [2, 2]
    assert not folder.exists()


class Differing(Processes):
    """Rank 0 of two, of which the other one has another value of a name."""

    differs: ClassVar[str]

    def meet(self) -> None:
        pass

    def group(self, device: torch.device, timeout: float) -> None:
        pass

    def everywhere(self, value: Any) -> list[Any]:
        differs = isinstance(value, dict) and self.differs in value
        return [value, {**value, self.differs: "another"} if differs else value]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (
            "extract",
            ["--split", "--batch-size", "the device", "the checksum of the network", "the number of query images"],
        ),
        ("evaluate", ["--skip-bad-images", "the checksum of the network", "the number of gallery images"]),
        ("label", ["--threshold", "--key", "--classes"]),
        (
            "train",
            ["--lr", "--resume", "--channels-last", "the device", "the version of torch", "the version of snnet"],
        ),
        ("train", ["the number of gallery images", "the checksum of the names of the query images"]),
    ],
)  # fmt: skip
def test_what_must_be_the_same_is_compared_in_each_command(
    call: str, names: list[str], tiny_options: dict[str, Any], features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = Path(tiny_options["data_dir"]), features.with_name("output.npz")
    run = config_from({**tiny_options, "output_dir": str(features.with_name("run"))})
    calls: dict[str, Callable[[Processes], object]] = {
        "extract": lambda processes: extract(ExtractCommand.parse(words(data, output)), processes),
        "evaluate": lambda processes: evaluate(EvaluateCommand.parse(network(data)), processes),
        "label": lambda processes: label(
            LabelCommand.parse([str(features), "--device", "cpu", "--output", str(output)]), processes
        ),
        "train": lambda processes: train(run, processes=processes),
    }
    for name in names:
        monkeypatch.setattr(Differing, "differs", name, raising=False)
        with pytest.raises(UserError, match=f"^{name} is .* on rank 0 and another on rank 1: all processes"):
            calls[call](Differing(0, 2))
    assert not output.exists() and not features.with_name("run").exists()


class OtherVersion(Differing):
    """Rank 0 of two, of which the other one has another version of this package, with fewer options."""

    def everywhere(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        other = {name: found for name, found in value.items() if name != "--lr"}
        return [value, {**other, "--epochs": 7, "the version of snnet": "0.9"}]


def test_another_version_is_told_before_its_options() -> None:
    with pytest.raises(
        UserError, match=r"^the version of snnet is \S+ on rank 0 and 0\.9 on rank 1: all processes"
    ):
        check_same_options(config_from({}), torch.device("cpu"), OtherVersion(0, 2))


@pytest.mark.parametrize("name", ["data_dir", "weights", "workers", "image_cache", "output_dir"])
def test_what_a_machine_has_for_itself_is_not_compared(name: str) -> None:
    told: list[Any] = []
    processes = SimpleNamespace(check_alike=told.append)
    check_same_options(config_from({}), torch.device("cpu"), processes)  # type: ignore[arg-type]
    assert OPTIONS[name].flag not in told[0] and "--lr" in told[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others(rank: int, tiny_market: Path, tmp_path: Path) -> None:
    hook = (
        f"if rank == {rank}:\n import os, snnet.retrieval.trained as trained\n"
        " trained.TrainedModel.features = lambda *_: os.kill(os.getpid(), 9)"
    )
    answers = run_processes(
        2, "-m", "snnet.extract", *words(tiny_market, tmp_path / "f.npz", "--quiet"), hook=hook
    )
    assert answers[rank].returncode == -9
    assert without_cause(answers[1 - rank]) == (1, "", GONE if rank else f"rank 1: {GONE}")
    assert list(tmp_path.iterdir()) == []


# Rank 0 works for 3 seconds, and rank 1, which waits for it, is told to end.
WAITING = """
from snnet.system.signals import end_on_signals
end_on_signals()
import os, signal, threading, time
from snnet.system.processes import several_processes
with several_processes() as processes:
    if processes.is_first:
        time.sleep(3)
        os._exit(0)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    processes.{}(0)
"""


@pytest.mark.parametrize("call", ["gathered", "everywhere"])
def test_a_process_that_waits_for_others_answers_sigterm(call: str) -> None:
    first, second = start_processes(2, "-c", WAITING.format(call))
    code = second.wait(2.5)
    assert code == 143
    assert second.answer() == (143, "", "terminated\n")
    first.answer()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_is_not_awaited_for_ever(rank: int) -> None:
    store = torch.distributed.HashStore()
    with pytest.raises(ProcessesEnded, match="has not come"):
        _agreed_word(store, rank, 2, timedelta(seconds=0.1))


def test_processes_that_cannot_meet_say_why() -> None:
    hook = "import os; os.environ['GLOO_SOCKET_IFNAME'] = 'none0'"
    answers = run_processes(2, "-m", "snnet.evaluate", *network(Path("data")), hook=hook)
    for rank, answer in enumerate(answers):
        assert (answer.returncode, answer.stdout) == (2, "")
        (line,) = answer.stderr.removeprefix("rank 1: " if rank else "").splitlines()
        assert line.startswith("error: the processes cannot meet: ") and "none0" in line


def test_an_address_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnet.system.processes.speak_as", lambda _: None)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"^the processes cannot meet: .*MASTER_ADDR"), several_processes():
        pass


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (RuntimeError("[gloo/pair.cc:547] Connection closed by peer [10.0.0.2]"), ProcessesEnded, f"{GONE[:-1]} (E)"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited\nmore"), ProcessesEnded, GONE[:-1]),
        (RuntimeError("[gloo/pair.cc:1] Timed out waiting 3000ms"), ProcessesEnded, f"{SILENT[:-1]} (E)"),
        (RuntimeError("[gloo/pair.cc:2] Read error: Connection timed out"), ProcessesEnded, f"{GONE[:-1]} (E)"),
        (RuntimeError("[enforce fail at gloo/device.cc:84] no memory"), RuntimeError, "E"),
        (torch.distributed.DistBackendError("NCCL error: out of memory"), RuntimeError, "E"),
        (RuntimeError("a connection of something else"), RuntimeError, "E"),
    ],
)  # fmt: skip
def test_the_end_of_another_process_is_told_from_other_errors(
    error: RuntimeError, kind: type[Exception], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snnet.system.processes._begin", lambda: None)
    monkeypatch.setattr("snnet.system.processes.speak_as", lambda _: None)
    monkeypatch.setattr("snnet.system.processes.own_place", lambda: (0, 2, 0))
    first = str(error).splitlines()[0]
    with pytest.raises(kind) as caught, several_processes():
        raise error
    wanted = line.replace("E", first) if "E" in line else f"{line} ({first})"
    assert str(caught.value) == wanted and type(caught.value) in (kind, type(error))


def test_the_advice_of_gloo_is_left_out() -> None:
    error = RuntimeError(
        "[pair.cc:1] Connection closed by peer [::1]:2. This is typically caused by a crash.\nat 3"
    )
    assert _cause(error) == "[pair.cc:1] Connection closed by peer [::1]:2"


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


@pytest.mark.parametrize(
    ("place", "answers"),
    [
        ({"LOCAL_RANK": "1"}, True),  # left in a shell: torchrun sets three variables
        ({"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"LOCAL_RANK": "0", "RANK": "2", "WORLD_SIZE": "4"}, True),  # of a second machine
        ({"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_one_process_of_each_machine_answers_help(
    place: dict[str, str],
    answers: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["extract", "--help"])
    with pytest.raises(SystemExit) as end:
        parse_early(ExtractCommand.parse)
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ") == answers


def test_a_gpu_is_taken_where_the_device_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    choose_device("cpu")
    choose_device("cuda:0")  # which is refused later
    assert taken == []
    choose_device("cuda")
    assert taken == [1]


def test_rank_0_alone_gets_the_labels_of_all() -> None:
    asked = SimpleNamespace(gather=lambda to: to)
    for rank in range(2):
        learner = SimpleNamespace(head=SimpleNamespace(pseudo_labels=asked), processes=Processes(rank, 2))
        assert Learner.labels(learner) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["mark", "", "another", None])
def test_the_folder_of_the_run_is_looked_for_before_rank_0_may_delete_it(
    tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()  # where it lacks the file of rank 0, it is another machine's
    mark = folder / "mark"

    def everywhere(value: object) -> list[object]:
        if isinstance(value, Path):
            return [mark, value]
        shutil.rmtree(folder)  # where rank 0 fails once all have come here
        return [True, value]

    processes = SimpleNamespace(rank=1, is_first=False, are_several=True, everywhere=everywhere)
    if content is not None:
        mark.write_text(content)
    if content == "mark":
        with _own_folder(config_from({}), None, processes) as own:  # type: ignore[arg-type]
            assert own == folder and not folder.exists()
    else:
        with (
            pytest.raises(UserError, match=f"{folder} is not the folder that rank 0 writes to: it must be"),
            _own_folder(config_from({}), None, processes),  # type: ignore[arg-type]
        ):
            pass


def test_rank_0_marks_the_folder_of_the_run_only_while_all_look_for_it(tmp_path: Path) -> None:
    told: list[object] = []

    def everywhere(value: object) -> list[object]:
        told.append(value)
        if isinstance(value, Path):
            assert value.read_text() == value.name
        return [value, value]

    processes = SimpleNamespace(rank=0, is_first=True, are_several=True, everywhere=everywhere)
    config = config_from({"output_dir": str(tmp_path / "run")})
    with _own_folder(config, None, processes) as own:  # type: ignore[arg-type]
        mark, there = told
        assert own == tmp_path / "run" and there is True
        assert isinstance(mark, Path) and mark.parent == own and not mark.exists()


LABELLED = 600  # in three processes none, 512 and 88


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Features of other lengths than 1, some of them equal, with names and identities."""
    rows = clustered_features(LABELLED, 12).numpy()
    rows[1::97] = rows[0]
    names = tuple(f"t{i // 5}/{i}.jpg" for i in range(LABELLED))
    content = FeatureSet(2 * rows, names, pids=np.arange(LABELLED) % 40)
    save_features(tmp_path / "f.npz", content)
    return tmp_path / "f.npz"


@pytest.mark.parametrize(
    "others",
    [
        ["--classes", "dbscan", "--group-pattern", "^t[0-9]+"],
        ["--classes", "components", "--threshold", "0.3", "--min-rank", "0"],
    ],
)
def test_three_processes_label_as_one_does(
    others: list[str], features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    given = [str(features), "--device", "cpu", *others, "--output"]
    one, three = features.with_name("one.npz"), features.with_name("three.npz")
    labels, pids = label(LabelCommand.parse([*given, str(one)]))
    told = capsys.readouterr()
    said = told.out.splitlines()
    answers = run_processes(3, "-m", "snnet.label", *given, str(three))
    assert [answer.returncode for answer in answers] == [0, 0, 0]
    assert [answer.stderr for answer in answers] == [told.err, "", ""]
    assert [answer.stdout for answer in answers[1:]] == ["", ""]
    assert labels.classes is not None
    assert answers[0].stdout.splitlines() == [
        *said,
        f"{three}: labels of 600 images",
        *label_table(labels, pids).splitlines(),
        class_summary(labels.classes, pids),
    ]
    assert three.read_bytes() == one.read_bytes()
    assert labels.y.counts().max() > 3 and said[-1].startswith("600 of 600 features are not of length 1")


# Features that are a little longer or shorter than 1, so that some anchors are no candidates of their candidates.
LABELS = """
import numpy as np, torch
import snnet_kernels.distributed.rows as division
from snnet.retrieval import candidates
from snnet.retrieval.sparse_labels import predict_divided_labels, predict_sparse_labels
from snnet.system.processes import several_processes
division.BLOCK, candidates.BLOCK_ROWS, candidates.TILE_ENTRIES = 8, 24, 100
angles = 2 * torch.rand(60, generator=torch.Generator().manual_seed(0))
lengths = torch.linspace(1 - 9e-4, 1 + 9e-4, 60)[torch.arange(60) * 7 % 60, None]
features = torch.stack([angles.cos(), angles.sin()], 1) * lengths
by_products, asked = candidates._are_behind, []
candidates._are_behind = lambda rows, *pairs: asked.append(len(pairs[0])) or by_products(rows, *pairs)
options = dict(threshold=0.8, min_rank=3)
with several_processes() as processes:
    wanted, alone = predict_sparse_labels(features, **options), asked.pop()
    own = division.own_rows(60, processes.rank, 3)
    group = processes.group(torch.device("cpu"), 60)
    found = predict_divided_labels(features[own.start : own.stop], processes, group, **options)
    assert sum(processes.everywhere(asked[0])) == alone
    if found is not None:
        for name in ("y", "y_sym", "y_nh"):
            for part in ("indptr", "indices"):
                assert np.array_equal(*(getattr(getattr(labels, name), part) for labels in (found, wanted)))
        assert np.array_equal(found.neighbors, wanted.neighbors)
    print(own.start, own.stop, found is None, alone)
"""


def test_ranks_that_candidates_do_not_tell_are_found_over_processes() -> None:
    answers = run_processes(3, "-c", LABELS)
    own = ["0 16 False 4\n", "16 40 True 4\n", "40 60 True 4\n"]
    assert [tuple(answer) for answer in answers] == [(0, line, "") for line in own]


def test_one_silent_process_ends_those_that_label(features: Path) -> None:
    hook = (
        "if rank == 1:\n import time, snnet.retrieval.candidates as candidates\n"
        " candidates.memory_similarity = lambda *_: time.sleep(5)"
    )
    given = [
        str(features),
        "--device",
        "cpu",
        "--timeout",
        "0.5",
        "--quiet",
        "--output",
        str(features.with_name("y.npz")),
    ]
    first, second = run_processes(2, "-m", "snnet.label", *given, hook=hook)
    assert without_cause(first) == (1, "", SILENT)
    assert second.returncode == 1 and not features.with_name("y.npz").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("nan", ": 2 of 600 features are not finite, first row 3"),
        ("names", ": names has 599 entries for 600 features"),
    ],
)
def test_what_cannot_be_labelled_is_told_alike(change: str, line: str, features: Path) -> None:
    rows = np.ones((LABELLED, 3), np.float32)
    rows[[3, 599]] = np.nan if change == "nan" else 1
    np.savez(features, features=rows, names=np.array(["a"] * (LABELLED - (change == "names"))))
    given = [str(features), "--device", "cpu", "--quiet", "--output", str(features.with_name("y.npz"))]
    answers = run_processes(2, "-m", "snnet.label", *given)
    told = [found for answer in answers for found in answer.stderr.splitlines() if "error: " in found]
    assert [found.removeprefix("rank 1: ") for found in told] == [f"error: {features}{line}"]
    assert {answer.returncode for answer in answers} <= {1, 2}


def test_each_process_draws_masks_of_its_own() -> None:
    def masks(rank: int, count: int, epoch: int) -> list[float]:
        config = config_from({"arch": "osnet_x0_25", "seed": 3})
        seed_masks(SimpleNamespace(processes=Processes(rank, count), config=config), epoch)  # type: ignore[arg-type]
        return torch.rand(4).tolist()

    found = [masks(rank, 2, epoch) for rank in range(2) for epoch in range(2)]
    assert len({tuple(values) for values in found}) == 4
    assert masks(1, 2, 1) == found[3]
    torch.manual_seed(5)
    drawn = [masks(0, 1, epoch) for epoch in range(2)]  # one process goes on from its state
    torch.manual_seed(5)
    assert drawn == [torch.rand(4).tolist(), torch.rand(4).tolist()]
