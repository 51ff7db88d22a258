"""The trainer on a tiny dataset: what it measures, writes and refuses."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snnet import train as trainer
from snnet.config.options import config_from
from snnet.config.resolve import load_yaml, resumed, to_yaml
from snnet.errors import UserError
from snnet.models import ReIDModel
from snnet.retrieval.trained import load_trained_model
from snnet.train import set_schedule, train
from snnet.training.checkpoint import load_checkpoint
from snnet.training.divergence import LossWatch, check_weights
from tests.forks import python
from tests.snnet.tiny_run import command_line, draw_market


@pytest.fixture(scope="module")
def run(
    tiny_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A finished run of four epochs, labels from the third on, evaluated every second."""
    folder = tmp_path_factory.mktemp("runs") / "a" / "run"
    options = {
        **tiny_options,
        "epochs": 4,
        "label_start_epoch": 2,
        "eval_every": 2,
        "output_dir": str(folder),
    }
    return folder, train(config_from(options))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_have_a_line_an_epoch_without_what_was_not_measured(run: tuple[Path, dict[str, Any]]) -> None:
    records = lines(run[0])
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    always = {"epoch", "loss", "positives", "lr", "memory_momentum", "seconds"}
    labels = {"agreement_symmetric", "agreement_neighbor", "label_recall", "products"}
    ranks = {"rank1", "rank5", "rank10", "mAP", "mINP"}
    for record in records:
        found = {name for name in record if not name.startswith("seconds_")}
        found -= {"label_precision", "label_symmetry"}  # absent where no pair is labelled
        expected = (
            always | (labels if record["epoch"] >= 2 else set()) | (ranks if record["epoch"] % 2 else set())
        )
        assert found == expected
        parts = sum(value for name, value in record.items() if name.startswith("seconds_"))
        assert 0 < parts <= record["seconds"]
        assert all(math.isfinite(value) for value in record.values())


def test_training_follows_the_method(run: tuple[Path, dict[str, Any]]) -> None:
    records = lines(run[0])
    assert records[1]["loss"] < records[0]["loss"]  # both of the warm-up: the same labels
    assert [record["memory_momentum"] for record in records] == [0.0, 0.125, 0.25, 0.375]
    assert [record["positives"] for record in records[:2]] == [1.0, 1.0]
    assert records[3]["positives"] > 1.0
    # In the first epoch with labels P is the identity until it is written, so y_sym has at most what this epoch wrote.
    assert 0.5 < records[2]["agreement_symmetric"] <= 1.0


@pytest.mark.filterwarnings("ignore:neighbour lists of 12 places")
def test_any_number_of_neighbors_trains_alike(
    run: tuple[Path, dict[str, Any]], tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**tiny_options, "epochs": 4, "label_start_epoch": 2, "eval_every": 2}
    train(config_from({**options, "output_dir": str(tmp_path / "run"), "neighbors": 12}))
    for one, other in zip(lines(run[0]), lines(tmp_path / "run"), strict=True):
        assert other["positives"] == one["positives"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert one.get("products", 0) == 0  # as many places as images
    heads = [load_checkpoint(folder)["head"] for folder in (run[0], tmp_path / "run")]
    assert torch.equal(heads[0]["pseudo_labels.row_bits"], heads[1]["pseudo_labels.row_bits"])
    assert heads[0].keys() == heads[1].keys()
    assert [head["memory.lists.columns"].shape for head in heads] == [(48, 48), (48, 12)]


def test_results_are_those_of_the_first_and_the_last_evaluation(run: tuple[Path, dict[str, Any]]) -> None:
    folder, returned = run
    results = json.loads((folder / "results.json").read_text())
    assert results == returned
    assert (results["dataset"], results["arch"], results["epochs"]) == ("market1501", "osnet_x0_25", 4)
    last = lines(folder)[-1]
    for name in ("rank1", "rank5", "rank10", "mAP", "mINP"):
        assert results["after"][name] == last[name]
    assert results["before"]["mAP"] != results["after"]["mAP"]
    assert (results["before"]["queries"], results["before"]["queries_without_match"]) == (16, 0)
    assert results["seconds"] == pytest.approx(sum(record["seconds"] for record in lines(folder)))


def test_a_network_that_training_made_worse_is_told(
    run: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(run[0], tmp_path / "run")
    results = json.loads((run[0] / "results.json").read_text())
    for before, after in ((0.713, 0.373), (0.373, 0.713), (0.5, 0.5)):
        changed = {name: results[name] | {"mAP": mAP} for name, mAP in (("before", before), ("after", after))}
        monkeypatch.setattr(trainer, "run_results", lambda *_, changed=changed: results | changed)
        train(resumed(tmp_path / "run", {}), resume=tmp_path / "run")
        told = [line for line in capsys.readouterr().out.splitlines() if "worse" in line]
        assert told == (
            [
                "training made the network worse: mAP 71.30 before, 37.30 after; "
                "usual reasons are too few images and a high --lr"
            ]
            if before > after
            else []
        )


def test_run_folder_holds_the_run(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pt", "config.yaml", "environment.json", "metrics.jsonl", "results.json", "tensorboard",
    }  # fmt: skip
    values = load_yaml(folder / "config.yaml")
    assert (values["label_start_epoch"], values["lr"], "output_dir" in values) == (2, 0.01, False)
    checkpoint = load_checkpoint(folder)
    assert checkpoint["metrics"] == lines(folder)
    features = checkpoint["head"]["memory.features"]
    assert features.shape == (48, 128)
    assert torch.allclose(features.norm(dim=1), torch.ones(48), atol=1e-5)
    with pytest.raises(
        UserError,
        match=r"has the checkpoint of a run: continue it with --resume .*, or choose another --output-dir$",
    ):
        train(config_from({"output_dir": str(folder)}))


def test_tensorboard_has_the_metrics(run: tuple[Path, dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[0] / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("training/loss")]
    assert losses == [(r["epoch"], pytest.approx(r["loss"], rel=1e-6)) for r in lines(run[0])]
    assert [event.step for event in events.Scalars("retrieval/mAP")] == [1, 3]


def test_schedule_is_a_function_of_the_epoch() -> None:
    class Stub:
        momentum, warmup = None, None

    config = config_from(
        {"lr": 0.1, "backbone_lr_mult": 0.5, "lr_step_epoch": 3, "epochs": 10, "label_start_epoch": 2}
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.05)
    optimizer.param_groups[0]["initial_lr"] = 0.05
    learner = trainer.Learner(None, config, None, Stub(), optimizer, 0)  # type: ignore[arg-type]
    seen = []
    for epoch in (0, 2, 3, 9, 2):  # in any order: nothing accumulates
        set_schedule(learner, epoch)
        seen.append((optimizer.param_groups[0]["lr"], learner.head.momentum, learner.head.warmup))
    np.testing.assert_allclose([s[0] for s in seen], [0.05, 0.05, 0.005, 0.005, 0.05])
    np.testing.assert_allclose([s[1] for s in seen], [0.0, 0.1, 0.15, 0.45, 0.1])
    assert [s[2] for s in seen] == [True, False, False, False, False]


def test_features_that_become_nan_stop_the_run_and_spare_the_checkpoint(
    tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps = ReIDModel.forward, []

    def failing(self: ReIDModel, images: torch.Tensor) -> torch.Tensor:
        steps.append(self.training)
        return forward(self, images) * (torch.nan if sum(steps) > 4 else 1.0)  # 3 steps an epoch

    monkeypatch.setattr(ReIDModel, "forward", failing)
    with pytest.raises(UserError, match="the loss is not finite at step 1 of epoch 1: training stopped"):
        train(config_from({**tiny_options, "output_dir": str(tmp_path)}))
    assert [record["epoch"] for record in load_checkpoint(tmp_path)["metrics"]] == [0]
    assert len(lines(tmp_path)) == 1
    assert not (tmp_path / "results.json").exists()


def test_loss_watch_names_the_first_bad_step_also_when_it_looks_late() -> None:
    watch = LossWatch(epoch=7, steps=10, device=torch.device("cpu"))
    watch.interval = 4
    for step, loss in enumerate([1.0, math.inf, math.nan]):
        watch.check(torch.tensor(loss), step)
    with pytest.raises(UserError, match="not finite at step 1 of epoch 7"):
        watch.check(torch.tensor(1.0), 3)
    last = LossWatch(epoch=0, steps=2, device=torch.device("cpu"))
    last.interval = 50
    last.check(torch.tensor(1.0), 0)
    with pytest.raises(UserError, match="not finite at step 1 of epoch 0"):
        last.check(torch.tensor(math.nan), 1)


def test_a_run_writes_the_layout_that_it_chose(run: tuple[Path, dict[str, Any]]) -> None:
    assert load_yaml(run[0] / "config.yaml")["channels_last"] is True  # on a CPU
    checkpoint = load_checkpoint(run[0])
    assert checkpoint["config"]["channels_last"] is True
    # Other programs, as safetensors, want the usual layout.
    assert all(value.is_contiguous() for value in checkpoint["model"].values())


def test_a_last_update_that_diverges_is_noticed_too() -> None:
    model = ReIDModel("osnet_x0_25")
    check_weights(model, 3)
    with torch.no_grad():
        next(model.parameters())[0] = math.inf
    with pytest.raises(UserError, match="weights are not finite after epoch 3"):
        check_weights(model, 3)


def test_crops_without_identities_are_trained_and_not_evaluated(
    tiny_options: dict[str, Any], tiny_market: Path, tmp_path: Path
) -> None:
    data = tiny_market / "bounding_box_train"
    options = {**tiny_options, "dataset": "folder", "data_dir": str(data), "epochs": 2, "amp": True}
    results = train(config_from({**options, "channels_last": True, "output_dir": str(tmp_path)}))
    assert "before" not in results and results["epochs"] == 2
    records = lines(tmp_path)
    assert not {"label_recall", "mAP"} & records[1].keys()
    assert records[1]["positives"] >= 1.0


def test_fewer_images_than_the_label_rules_rank(tiny_options: dict[str, Any], tmp_path: Path) -> None:
    data = draw_market(tmp_path / "data", identities=1, cameras=2)  # 6 images, MPLP's smallest rank is 10
    options = {**tiny_options, "data_dir": str(data), "batch_size": 4, "epochs": 2, "label_start_epoch": 0}
    results = train(config_from({**options, "output_dir": str(tmp_path / "run")}))
    assert results["after"]["rank1"] == 1.0  # there is one identity
    assert all(1 <= record["positives"] <= 6 for record in lines(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "48 training images are fewer than one batch of 64"),
        ({"data_dir": "no/such/folder"}, "no/such/folder"),
        ({"device": "cuda:99"}, r"--device cuda:99: torch .* sees \d+ CUDA devices"),
        ({"device": "quantum"}, "--device must be auto, cpu, cuda or cuda:N, got 'quantum'"),
        ({"arch": "resnet19"}, "--arch: must be one of .*, got 'resnet19'; did you mean 'resnet18'"),
        ({"weights": "no/such.pth"}, "no/such.pth"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_written(
    tiny_options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(config_from({**tiny_options, **changes, "output_dir": str(tmp_path / "run")}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("start", "warned"), [(4, True), (5, True), (3, False), (0, False)])
def test_a_run_that_ends_before_it_predicts_labels_is_told(start: int, warned: bool) -> None:
    config = config_from({"epochs": 4, "label_start_epoch": start})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.warn_of_no_labels(config)
    line = f"no label is ever predicted: --label-start-epoch {start} is not below --epochs 4"
    assert [str(warning.message) for warning in found] == [line] * warned


def test_one_camera_only_is_explained_before_an_image_is_read(
    tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "decode", lambda *_: pytest.fail("an image is read"))
    data = draw_market(tmp_path / "data", cameras=1)
    with pytest.raises(UserError, match="camera"):
        train(config_from({**tiny_options, "data_dir": str(data), "output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_damaged_images_are_an_error_or_left_out_with_a_count(
    tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    data = draw_market(tmp_path / "data")
    bad = data / "bounding_box_train" / "0001_c1s1_000000_00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    options = {**tiny_options, "data_dir": str(data), "epochs": 1, "output_dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"0001_c1s1_000000_00\.png"):
        train(config_from(options))
    with pytest.warns(UserWarning, match="left out 1 of 48 images"):
        train(config_from({**options, "skip_bad_images": True}))
    assert load_checkpoint(tmp_path / "run")["head"]["memory.features"].shape[0] == 47


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl", "results.json"])
def test_files_that_no_run_wrote_are_never_replaced(name: str, tmp_path: Path) -> None:
    """The preset of a run is none that a run wrote: it has only some of the options."""
    (tmp_path / name).write_text("dataset: folder\nlr: 0.5\n")
    options = config_from({"output_dir": str(tmp_path), "dataset": "folder", "data_dir": "no/such/folder"})
    with pytest.raises(UserError) as caught:
        train(options)
    assert str(caught.value) == (
        f"--output-dir {tmp_path}: {tmp_path / name} is in the way: no run wrote it; move it, or choose another folder"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: "dataset: folder\nlr: 0.5\n"
    }
    if name != "config.yaml":  # what a run has written that was stopped before its first checkpoint
        run = {"dataset": "folder", "data_dir": "d", "checkpoint_every": 3}
        (tmp_path / "config.yaml").write_text(to_yaml(config_from(run)))
        ended = name == "results.json"
        with pytest.raises(UserError, match="though it has results.json" if ended else "no/such/folder"):
            train(options)


def test_output_folder_that_cannot_be_made(
    tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    listed: list[object] = []
    monkeypatch.setattr(trainer, "dataset_of", lambda data, camstyle: listed.append(data))
    # /proc takes no folders, not even from the superuser, whom permissions let write everywhere.
    for folder in [tmp_path / "file" / "run", *([Path("/proc/run")] if sys.platform == "linux" else [])]:
        with pytest.raises(UserError) as caught:
            train(config_from({**tiny_options, "output_dir": str(folder)}))
        assert str(caught.value).startswith(
            f"--output-dir {folder}: must be a folder that can be written to ("
        )
    assert listed == []
    with pytest.raises(AttributeError):  # of the dataset that is none
        train(config_from({**tiny_options, "output_dir": str(tmp_path / "a" / "b")}))
    assert len(listed) == 1 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command_prints_one_line_and_exits_with_2(tiny_options: dict[str, Any], tmp_path: Path) -> None:
    runs = {
        "train --epoch 3": "error: unknown flag '--epoch'; did you mean '--epochs'? (--help lists the flags)",
        f"evaluate --checkpoint {tmp_path}": f"error: no checkpoint at {tmp_path}/checkpoint.pt",
    }
    runs["train " + " ".join(command_line({**tiny_options, "batch_size": 99}))] = (
        "error: 48 training images are fewer than one batch of 99: lower --batch-size"
    )
    for line, message in runs.items():
        command, *words = line.split()
        answer = python("-m", f"snnet.{command}", *words, folder=tmp_path)
        assert (answer.returncode, answer.stderr.strip()) == (2, message)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_batch_are_normalised_apart(
    run: tuple[Path, dict[str, Any]], tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**tiny_options, "epochs": 1, "bn_groups": 2, "output_dir": str(tmp_path / "run")}
    with pytest.warns(UserWarning, match="no label is ever predicted"):
        train(config_from(options))
    assert load_checkpoint(tmp_path / "run")["config"]["bn_groups"] == 2
    assert load_checkpoint(tmp_path / "run")["model"].keys() == load_checkpoint(run[0])["model"].keys()
    assert lines(tmp_path / "run")[0]["loss"] != pytest.approx(lines(run[0])[0]["loss"], rel=1e-4)
    # What trains in parts is used with any batch.
    trained = load_trained_model(tmp_path / "run", None, {"batch_size": 3, "device": "cpu"})
    assert (trained.config.data.batch_size, trained.config.training.bn_groups) == (3, 2)


@pytest.mark.parametrize(("batch_size", "groups"), [(16, 3), (16, 16), (6, 4)])
def test_groups_that_do_not_cut_a_batch_are_refused_before_anything_is_made(
    batch_size: int, groups: int, tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**tiny_options, "batch_size": batch_size, "bn_groups": groups}
    with pytest.raises(
        UserError,
        match=rf"^--bn-groups {groups} must cut --batch-size {batch_size} into equal parts of 2 or more$",
    ):
        train(config_from({**options, "output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()
