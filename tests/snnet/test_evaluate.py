"""``snnet.evaluate`` on checkpoints and on weights from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from snnet import evaluate as command
from snnet.config.commands import EvaluateCommand
from snnet.config.options import config_from, flatten
from snnet.errors import UserError
from snnet.evaluate import evaluate
from snnet.retrieval.trained import load_trained_model
from snnet.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def run(finished_run: Path) -> tuple[Path, dict[str, Any]]:
    """A run and its results."""
    return finished_run, json.loads((finished_run / "results.json").read_text())


def measure(*words: object) -> dict[str, Any]:
    return evaluate(EvaluateCommand.parse([str(word) for word in words]))


RANKS = ("rank1", "rank5", "rank10", "mAP", "mINP", "queries", "queries_without_match", "average_precision")


def test_a_checkpoint_gives_the_trainers_numbers(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    for path in (folder, folder / "checkpoint.pt"):
        found = measure("--checkpoint", path, "--device", "cpu")
        assert {name: found[name] for name in RANKS} == {name: results["after"][name] for name in RANKS}
        assert (found["dataset"], found["arch"], found["weights"]) == ("market1501", "osnet_x0_25", None)


def test_json_is_all_that_stdout_gets(
    run: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(run[0]), "--device", "cpu"]
    command.main(EvaluateCommand.parse([*words, "--json"]))
    assert json.loads(capsys.readouterr().out)["mAP"] == run[1]["after"]["mAP"]
    command.main(EvaluateCommand.parse(words))
    table = capsys.readouterr().out
    assert f"{100 * run[1]['after']['mAP']:.2f}" in table and "16 queries, mAP by step" in table


def test_weights_from_elsewhere_are_evaluated_without_a_checkpoint(
    run: tuple[Path, dict[str, Any]], tiny_market: Path, tmp_path: Path
) -> None:
    folder, results = run
    weights = tmp_path / "weights.pt"
    torch.save(load_checkpoint(folder)["model"], weights)
    size = ("--height", 32, "--width", 16, "--device", "cpu", "--workers", 0)
    data = ("--dataset", "market1501", "--data-dir", tiny_market)
    found = measure("--arch", "osnet_x0_25", "--weights", weights, *data, *size)
    assert found["mAP"] == pytest.approx(results["after"]["mAP"], abs=1e-12)
    assert (found["weights"], found["checkpoint"]) == (str(weights), None)


def test_flags_choose_feature_and_definition(run: tuple[Path, dict[str, Any]]) -> None:
    step = measure("--checkpoint", run[0], "--device", "cpu")
    trapezoid = measure("--checkpoint", run[0], "--device", "cpu", "--average-precision", "trapezoid")
    after = measure("--checkpoint", run[0], "--device", "cpu", "--retrieval-feature", "after")
    assert trapezoid["average_precision"] == "trapezoid"
    assert trapezoid["rank1"] == step["rank1"] and trapezoid["mAP"] != step["mAP"]
    assert after["mAP"] != step["mAP"]


def test_another_network_another_file_and_no_gallery_are_refused(
    run: tuple[Path, dict[str, Any]], tiny_market: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--arch resnet18 contradicts .* which has osnet_x0_25"):
        measure("--checkpoint", run[0], "--arch", "resnet18")
    with pytest.raises(UserError, match="dataset folder has no query and gallery"):
        measure("--checkpoint", run[0], "--dataset", "folder", "--data-dir", tiny_market)
    with pytest.raises(UserError, match="not a checkpoint"):
        measure("--checkpoint", run[0] / "metrics.jsonl")
    state = {key: value for key, value in load_checkpoint(run[0]).items() if key not in ("format", "version")}
    state["model"] = {name: value[:1] if value.dim() else value for name, value in state["model"].items()}
    save_checkpoint(tmp_path / "checkpoint.pt", **state)
    with pytest.raises(
        UserError, match=r"does not fit this network: backbone.+ has shape \(1,\), .* and \d+ more"
    ):
        measure("--checkpoint", tmp_path)


def test_a_program_names_paths_as_text_or_path_and_is_told_what_it_gave_wrongly(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    save_file = tmp_path / "w.safetensors"
    one = load_trained_model(str(run[0]), None, {"device": "cpu"})
    assert load_checkpoint(run[0])["config"]["deterministic"] is True  # which is of the run's machine
    assert one.config.runtime.deterministic is False
    safetensors.torch.save_file(one.model.state_dict(), save_file)
    size = {"height": 32, "width": 16, "device": "cpu", "arch": "osnet_x0_25"}
    two = load_trained_model(None, None, {**size, "weights": save_file})
    assert one.fingerprint() == two.fingerprint() and one.config.data.height == 32
    for given, message in (
        ({"foo": 1}, "given: unknown key 'foo'"),
        ({"height": "tall"}, "given: height: must be a whole number >= 16 and <= 8192, got 'tall'"),
    ):
        for checkpoint in (run[0], None):
            with pytest.raises(UserError, match=message):
                load_trained_model(checkpoint, None, given)
    with pytest.raises(UserError, match=r"w.safetensors is no training checkpoint .* give it to --weights"):
        load_trained_model(save_file, None, {})


def test_the_weights_that_a_run_began_with_may_be_named_from_their_folder(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {key: value for key, value in load_checkpoint(run[0]).items() if key not in ("format", "version")}
    state["config"] |= {"weights": str(tmp_path / "w.pt")}
    save_checkpoint(tmp_path / "checkpoint.pt", **state)
    monkeypatch.chdir(tmp_path)
    found = load_trained_model(tmp_path, None, {"weights": "w.pt", "device": "cpu"})
    assert found.config.model.weights == str(tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"--weights {tmp_path}/v.pt contradicts .* has {tmp_path}/w.pt$"):
        load_trained_model(tmp_path, None, {"weights": "v.pt"})


def test_another_dataset_does_not_look_into_the_first_ones_folder(run: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="dataset dukemtmc needs a data folder"):
        measure("--checkpoint", run[0], "--dataset", "dukemtmc")


def test_what_was_chosen_for_the_machine_of_a_run_does_not_carry_over(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    chosen = {"channels_last": False, "image_cache": "on", "workers": 31, "device": "cuda:7"}
    state = {key: value for key, value in load_checkpoint(run[0]).items() if key not in ("format", "version")}
    state["config"] |= chosen
    save_checkpoint(tmp_path / "checkpoint.pt", **state)
    there = load_trained_model(tmp_path, None, {"device": "cpu"})
    assert there.placement.summary() == "cpu, float32, channels-last"
    found, wanted = flatten(there.config), flatten(config_from({}))
    assert all(found[name] == wanted[name] for name in chosen if name != "device")
    here = flatten(load_trained_model(tmp_path, None, {**chosen, "device": "cpu"}).config)
    assert here == {**found, **chosen, "device": "cpu"}


def test_random_weights_are_those_of_the_seed_and_are_said_to_be_random(
    tiny_market: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--dataset",
        "market1501",
        "--data-dir",
        tiny_market,
        "--arch",
        "osnet_x0_25",
        "--weights",
        "none",
    )
    size = ("--height", 32, "--width", 16, "--workers", 0, "--device", "cpu")
    first, second, other = (measure(*options, *size, "--seed", seed)["mAP"] for seed in (3, 3, 4))
    assert first == second != other
    said = [line for line in capsys.readouterr().out.splitlines() if "random weights" in line]
    assert said == [
        f"osnet_x0_25 has random weights, of --seed {seed}: it was never trained" for seed in (3, 3, 4)
    ]


def test_a_checkpoint_without_its_configuration_is_refused(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole = load_checkpoint(run[0])
    contents = {name: value for name, value in whole.items() if name not in ("format", "version", "config")}
    save_checkpoint(tmp_path / "bare.pt", **contents, config={})
    with pytest.raises(UserError, match=r"bare.pt is not a whole checkpoint: its configuration is missing"):
        measure("--checkpoint", tmp_path / "bare.pt")
