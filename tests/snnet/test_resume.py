"""A run that is killed and resumed ends where one that was left alone does."""

from __future__ import annotations

import json
import platform
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from snnet import train as trainer
from snnet.config.commands import TrainCommand
from snnet.config.options import config_from
from snnet.config.resolve import to_yaml
from snnet.errors import UserError
from snnet.train import train
from snnet.training.checkpoint import load_checkpoint, save_checkpoint
from snnet.training.run_folder import check_new
from tests.forks import TRAINING, python
from tests.snnet.tiny_run import command_line, outcome

# Kill this process, as `kill -9` does, at the n-th of a kind of call.
KILL_AT = """
import os, signal, sys
def kill_at(count, owner, name):
    original, calls = getattr(owner, name), [0]
    def replacement(*arguments, **named):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(owner, name, replacement)
"""
# Step 1 of epoch 2: the run has 3 steps an epoch.
IN_AN_EPOCH = """
from snnet.config.commands import TrainCommand
from snnet.train import main
from snnet.training.learner import SNNetHead
kill_at(8, SNNetHead, 'update_')
main(TrainCommand.parse(sys.argv[1:]))
"""
# With the third checkpoint (of epoch 2) in its temporary file, before it is made durable and renamed.
IN_A_WRITE = """
import torch
from snnet.config.commands import TrainCommand
from snnet.train import main
save, calls = torch.save, [0]
def half(state, file):
    calls[0] += 1
    save(state, file)
    if calls[0] == 3:
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
main(TrainCommand.parse(sys.argv[1:]))
"""


def run(code: str, options: dict[str, Any]) -> int:
    """The status of a process that runs ``code`` with these options on its command line."""
    return python("-c", KILL_AT + code, *command_line(options), imports=TRAINING).returncode


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


@pytest.fixture(scope="module")
def options(tiny_options: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_options, "epochs": 4, "lr_step_epoch": 3, "eval_every": 2}


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    train(config_from({**options, "output_dir": str(folder)}))
    return folder


@pytest.fixture(scope="module")
def killed(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs killed in an epoch and in the write of a checkpoint."""
    folders = {name: tmp_path_factory.mktemp("killed") for name in ("epoch", "write")}
    for name, code in (("epoch", IN_AN_EPOCH), ("write", IN_A_WRITE)):
        assert run(code, {**options, "output_dir": str(folders[name])}) == -signal.SIGKILL
    return folders


@pytest.mark.parametrize("moment", ["epoch", "write"])
def test_a_killed_run_ends_as_one_left_alone(
    moment: str, killed: dict[str, Path], whole: Path, builds: list[tuple[int, int]]
) -> None:
    folder = killed[moment]
    assert "memory.lists.columns" in load_checkpoint(folder)["head"]  # of epoch 1, the first with labels
    assert [record["epoch"] for record in load_checkpoint(folder)["metrics"]] == [0, 1]
    assert len(list(folder.glob(".snnet-*.tmp"))) == (moment == "write")
    assert json.loads((folder / "run.lock").read_text())["host"] == platform.node()
    assert not (folder / "results.json").exists()
    command = TrainCommand.parse(["--resume", str(folder), "--workers", "1"])
    train(command.config, resume=command.resume)
    assert builds == []  # lists go on from where they were
    assert_same(outcome(folder), outcome(whole))
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_tensorboard_shows_each_epoch_once_after_a_resume(killed: dict[str, Path], whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(killed["write"] / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [0, 1, 2, 3]


def test_resuming_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(whole, folder)
    (folder / "results.json").unlink()
    command = TrainCommand.parse(["--resume", str(folder)])
    train(command.config, resume=command.resume)
    assert_same(outcome(folder), outcome(whole))
    # Nothing was trained there: no start is recorded.
    environment = (whole / "environment.json").read_text()
    assert (folder / "environment.json").read_text() == environment
    assert [start["first_epoch"] for start in json.loads(environment)] == [0]


def refuse(*_: Any, **__: Any) -> Any:
    raise MemoryError


def resume_without_training(folder: Path, *words: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_epoch", refuse)
        return train(TrainCommand.parse(["--resume", str(folder), *words]).config, resume=folder)


@pytest.fixture(scope="module")
def reranked(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked for ranks after re-ranking when it was done."""
    folder = tmp_path_factory.mktemp("reranked") / "run"
    shutil.copytree(whole, folder)
    resume_without_training(folder, "--rerank")
    return folder


def test_a_finished_run_is_measured_as_it_is_asked_to(whole: Path, reranked: Path) -> None:
    (records, results, *state), (others, later, *after) = outcome(whole), outcome(reranked)
    assert later.pop("reranked")["mAP"] == others[-1].pop("reranked_mAP") != results["after"]["mAP"]
    others[-1] = {name: value for name, value in others[-1].items() if not name.startswith("reranked_")}
    assert_same((others, later, after), (records, results, state))
    assert load_checkpoint(reranked)["metrics"] == [
        json.loads(line) for line in (reranked / "metrics.jsonl").read_text().splitlines()
    ]
    with pytest.MonkeyPatch.context() as patch:  # it is not measured, nor written, again
        patch.setattr(trainer, "rank_gallery", refuse)
        patch.setattr(trainer.Learner, "save", refuse)
        assert resume_without_training(reranked, "--rerank")["reranked"] == outcome(reranked)[1]["reranked"]


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [(trainer, "label_symmetry", 2), (trainer, "rerank_gallery", 1), (trainer.Learner, "save", 2)],
)
def test_a_trained_epoch_outlives_what_fails_behind_it(
    owner: Any, name: str, calls: int, options: dict[str, Any], reranked: Path, tmp_path: Path
) -> None:
    """The last of so many calls of the resumed run fails, which comes behind its last epoch."""
    stop({**options, "rerank": True}, tmp_path, 3)
    original, done = getattr(owner, name), [0]

    def failing(*arguments: Any, **named: Any) -> Any:
        done[0] += 1
        return (refuse if done[0] == calls else original)(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(owner, name, failing)
        train(TrainCommand.parse(["--resume", str(tmp_path)]).config, resume=tmp_path)
    assert [record["epoch"] for record in load_checkpoint(tmp_path)["metrics"]] == [0, 1, 2, 3]
    assert not (tmp_path / "results.json").exists()
    resume_without_training(tmp_path)
    assert_same(outcome(tmp_path), outcome(reranked))


def entries(folder: Path) -> dict[str, Any]:
    """Those of the run's checkpoint, as :func:`save_checkpoint` takes them."""
    return {key: value for key, value in load_checkpoint(folder).items() if key not in ("format", "version")}


def test_a_run_goes_on_with_its_own_camstyle_images_alone(options: dict[str, Any], tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(options["data_dir"], data)
    styles = [
        data / "bounding_box_train_camstyle" / f"{file.stem}_fake_1to2.png"
        for file in sorted((data / "bounding_box_train").glob("*_c1*.png"))
    ]
    styles[0].parent.mkdir()
    for style in styles:
        shutil.copy(data / "bounding_box_train" / style.name.replace("_fake_1to2", ""), style)
    stop({**options, "data_dir": str(data), "camstyle": True, "epochs": 2, "eval_every": 0}, folder, 1)
    resume = TrainCommand.parse(["--resume", str(folder)]).config
    styles[0].rename(tmp_path / styles[0].name)
    with pytest.raises(
        UserError, match=r"checkpoint.pt was written for other CamStyle images than those that were"
    ):
        train(resume, resume=folder)
    earlier = shutil.copytree(folder, tmp_path / "earlier")  # a run of a version that did not compare them
    state = entries(folder)
    del state["styles"]
    save_checkpoint(earlier / "checkpoint.pt", **state)
    train(resume, resume=earlier)
    assert len(load_checkpoint(earlier)["metrics"]) == 2
    (tmp_path / styles[0].name).rename(styles[0])
    train(resume, resume=folder)
    assert len(load_checkpoint(folder)["metrics"]) == 2


def test_a_run_goes_on_with_its_own_pictures_alone(options: dict[str, Any], tmp_path: Path) -> None:
    """Row i of the memories belongs to what image i shows, whatever its name."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(options["data_dir"], moved)
    stop({**options, "epochs": 2, "eval_every": 0}, folder, 1)
    resume = TrainCommand.parse(["--resume", str(folder), "--data-dir", str(moved)]).config
    one, other = sorted((moved / "bounding_box_train").glob("*.png"))[:2]
    kept = one.read_bytes()
    shutil.copy(other, one)
    with pytest.raises(UserError, match=r"checkpoint.pt was written for other training images than those"):
        train(resume, resume=folder)
    earlier = shutil.copytree(folder, tmp_path / "earlier")  # a run of a version that compared names alone
    state = entries(folder)
    del state["pictures"]
    save_checkpoint(earlier / "checkpoint.pt", **state)
    train(resume, resume=earlier)
    one.write_bytes(kept)
    train(resume, resume=folder)
    assert len(load_checkpoint(folder)["metrics"]) == len(load_checkpoint(earlier)["metrics"]) == 2


def test_a_run_of_the_built_in_set_goes_on_where_it_was_drawn_with_another_zlib(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine draws it; the pixels are the same, the bytes of the files need not be."""
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(options["data_dir"], data)
    monkeypatch.setattr("snnet.data.datasets.generate", lambda root: data)
    stop({**options, "dataset": "synthetic", "data_dir": None, "epochs": 2, "eval_every": 0}, folder, 1)
    for path in (data / "bounding_box_train").glob("*.png"):
        before = path.read_bytes()
        Image.open(path).save(path, compress_level=1)
        assert path.read_bytes() != before
    train(TrainCommand.parse(["--resume", str(folder)]).config, resume=folder)
    assert len(load_checkpoint(folder)["metrics"]) == 2


def without_lists(folder: Path) -> None:
    """Make the run one of an earlier version, which kept no lists and had a matrix to choose."""
    state = entries(folder)
    state["head"] = {name: value for name, value in state["head"].items() if "memory.lists." not in name}
    state["config"]["cache"] = "auto"
    save_checkpoint(folder / "checkpoint.pt", **state)
    with (folder / "config.yaml").open("a") as file:
        file.write("cache: auto\n")


def stop(options: dict[str, Any], folder: Path, epoch: int) -> None:
    """Train and die at the beginning of the epoch."""
    schedule = trainer.set_schedule

    def stopping(learner: trainer.Learner, begun: int) -> dict[str, float]:
        if begun == epoch:
            raise KeyboardInterrupt
        return schedule(learner, begun)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "set_schedule", stopping)
        train(config_from({**options, "output_dir": str(folder)}))


@pytest.mark.filterwarnings("ignore:neighbour lists of")
def test_lists_of_few_places_go_on_from_where_they_were(
    options: dict[str, Any], tmp_path: Path, builds: list[tuple[int, int]]
) -> None:
    """Full rows have risen floors, which a build would lower: products would be others, and so would be their count."""
    options = {**options, "neighbors": 4, "threshold": 0.3, "epochs": 3, "eval_every": 0}
    train(config_from({**options, "output_dir": str(tmp_path / "whole")}))
    made = len(builds)
    stop(options, tmp_path / "stopped", 2)
    assert 0 < len(builds) - made <= made
    train(TrainCommand.parse(["--resume", str(tmp_path / "stopped")]).config, resume=tmp_path / "stopped")
    assert len(builds) == 2 * made
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))
    assert outcome(tmp_path / "whole")[0][2]["products"] > 0


def test_a_run_of_an_earlier_version_goes_on(
    options: dict[str, Any], whole: Path, tmp_path: Path, builds: list[tuple[int, int]]
) -> None:
    stop(options, tmp_path, 2)
    without_lists(tmp_path)
    del builds[:]
    train(TrainCommand.parse(["--resume", str(tmp_path)]).config, resume=tmp_path)
    assert [images for _, images in builds] == [48]
    assert "\ncache:" not in (tmp_path / "config.yaml").read_text()
    records, results, *_ = outcome(tmp_path)
    for one, other in zip(records, outcome(whole)[0], strict=True):
        assert one.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-4)
        assert one["positives"] == other["positives"]
    bits = [load_checkpoint(folder)["head"]["pseudo_labels.row_bits"] for folder in (tmp_path, whole)]
    assert torch.equal(*bits)
    assert "memory.lists.columns" in load_checkpoint(tmp_path)["head"] and results["epochs"] == 4


@pytest.mark.parametrize(("every", "stop_at", "saved"), [(3, 2, 0), (2, 3, 2)])
def test_epochs_past_the_checkpoint_are_done_again(
    options: dict[str, Any], whole: Path, tmp_path: Path, every: int, stop_at: int, saved: int
) -> None:
    """Checkpoints are rare, and the run dies between two, or before the first."""
    stop({**options, "checkpoint_every": every}, tmp_path, stop_at)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == stop_at
    assert (tmp_path / "checkpoint.pt").exists() == (saved > 0)
    if saved:
        assert len(load_checkpoint(tmp_path)["metrics"]) == saved
    train(TrainCommand.parse(["--resume", str(tmp_path)]).config, resume=tmp_path)
    assert_same(outcome(tmp_path), outcome(whole))


def test_a_run_that_does_not_fit_its_checkpoint_is_refused(
    whole: Path, tiny_market: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("delta: 5.0", "delta: 4.0"))
    with pytest.raises(
        UserError, match=r"config.yaml has delta 4.0, but the checkpoint was written with 5.0"
    ):
        train(TrainCommand.parse(["--resume", str(folder)]).config, resume=folder)
    (folder / "config.yaml").write_text(text)

    data = tmp_path / "data"
    shutil.copytree(tiny_market, data)
    first = data / "bounding_box_train" / "0001_c1s1_000000_00.png"
    first.rename(first.with_name("0001_c1s1_000009_00.png"))
    config = TrainCommand.parse(["--resume", str(folder), "--data-dir", str(data)]).config
    with pytest.raises(UserError, match="was written for other training images"):
        train(config, resume=folder)
    for path in (data / "bounding_box_train").glob("0001_*"):  # the memory has other shapes then, too
        path.unlink()
    with pytest.raises(UserError, match="was written for other training images"):
        train(config, resume=folder)

    state = {key: value for key, value in load_checkpoint(whole).items() if key not in ("format", "version")}
    state["head"] = {name: value[:40] for name, value in state["head"].items() if value.dim()}
    save_checkpoint(folder / "checkpoint.pt", **state)
    with pytest.raises(UserError, match="does not fit this exemplar and label memory"):
        train(TrainCommand.parse(["--resume", str(folder)]).config, resume=folder)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_failed_save_of_several_processes_left_is_deleted_before_training(
    resumed: bool,
    tiny_options: dict[str, Any],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder) if resumed else folder.mkdir()
    for name in (
        "checkpoint-2-0-of-2.safetensors",
        "checkpoint-2-0-of-2-2.safetensors",
        "checkpoint-of-mine.safetensors",
    ):
        (folder / name).touch()

    def told(*_: Any) -> None:
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-of-mine.safetensors"]
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "kernels_line", told)
    words = (
        ["--resume", str(folder)] if resumed else command_line({**tiny_options, "output_dir": str(folder)})
    )
    with pytest.raises(KeyboardInterrupt):
        train(TrainCommand.parse(words).config, resume=folder if resumed else None)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_run_whose_checkpoint_is_gone_is_not_begun_again(
    is_link: bool, finished_run: Path, tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    """Its metrics and results would be replaced."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.unlink()
    if is_link:
        checkpoint.symlink_to(tmp_path / "disk" / "checkpoint.pt")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    gone = f"{folder} has no checkpoint.pt, though it has trained 1 epoch: put it back, or "
    anew = f"--config {folder}/config.yaml --output-dir NEW"
    new = f"{folder} has the checkpoint of a run: continue it with --resume {folder}, or choose another --output-dir"
    command = TrainCommand.parse(["--resume", str(folder)])
    with pytest.raises(UserError) as resumed:
        train(command.config, resume=command.resume)
    with pytest.raises(UserError) as begun:
        train(config_from({**tiny_options, "epochs": 1, "output_dir": str(folder)}))
    told = f"{checkpoint} is a link to {tmp_path}/disk/checkpoint.pt, which is not there"
    if not is_link:
        told, new = f"{gone}train anew with {anew}", f"{gone}choose another --output-dir"
    assert (str(resumed.value), str(begun.value)) == (told, new)
    again = TrainCommand.parse(anew.split()).config
    assert to_yaml(again) == (folder / "config.yaml").read_text() and again.output.output_dir == "NEW"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert checkpoint.is_symlink() == is_link


@pytest.mark.parametrize(
    ("epochs", "every", "first", "trained"),
    [(2, 3, 0, 0), (3, 3, 0, 3), (2, 9, 0, 0), (4, 9, 0, 4), (2, 3, 1, 1)],
)
def test_only_a_run_without_its_first_checkpoint_is_begun_again(
    epochs: int, every: int, first: int, trained: int, tmp_path: Path
) -> None:
    """A resumed run, whose first epoch is not 0, had one, whatever its interval is now."""
    config = to_yaml(config_from({"dataset": "synthetic", "epochs": 4, "checkpoint_every": every}))
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "metrics.jsonl").write_text("{}\n" * epochs)
    (tmp_path / "environment.json").write_text(json.dumps([{"first_epoch": first}]))
    if not trained:
        check_new(tmp_path)
        return
    with pytest.raises(UserError, match=f"though it has trained {trained} epochs?: put it back"):
        check_new(tmp_path)


def test_a_run_begun_again_with_another_interval_may_be_stopped_at_once(
    tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the run before there are two epochs in the metrics, and no checkpoint."""
    old, new = (
        config_from({**tiny_options, "epochs": 4, "checkpoint_every": every, "output_dir": str(tmp_path)})
        for every in (3, 1)
    )
    (tmp_path / "config.yaml").write_text(to_yaml(old))
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 2)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "RunLog", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(new)
    assert "checkpoint_every: 1\n" in (tmp_path / "config.yaml").read_text()
    check_new(tmp_path)
