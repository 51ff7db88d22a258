"""Flags, presets, and the one-line messages for what is wrong with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import snnet.__main__ as listing
from snnet.config.command_line import Command
from snnet.config.commands import (
    EvaluateCommand,
    ExportCommand,
    ExtractCommand,
    LabelCommand,
    ReportCommand,
    SearchCommand,
    TrainCommand,
)
from snnet.config.fields import options_of
from snnet.config.options import OPTIONS, Config, config_from, flatten
from snnet.config.resolve import PRESETS, load_yaml, preset_names, to_yaml
from snnet.errors import UserError
from snnet.files.outputs import write_text
from tests.snnet.command_lines import COMMANDS


def parse(line: str) -> Config:
    return TrainCommand.parse(line.split()).config


def complaint(line: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers_recipe() -> None:
    config = parse("--dataset market1501 --data-dir somewhere")
    training, method = config.training, config.method
    assert (training.lr, training.backbone_lr_mult, training.momentum, training.weight_decay) == (
        0.1,
        0.1,
        0.9,
        5e-4,
    )
    assert (training.epochs, training.lr_step_epoch, config.data.batch_size) == (60, 30, 128)
    assert (config.data.height, config.data.width, config.model.arch) == (256, 128, "resnet50")
    assert (method.lambda_base, method.lambda_sym, method.lambda_nh) == (1.0, 0.8, 0.6)
    assert (method.threshold, method.min_rank, method.label_start_epoch) == (0.6, 10, 5)
    assert (method.loss_kind, method.delta, method.hard_negative_ratio) == ("mmcl", 5.0, 0.01)
    assert (method.label_source, config.model.embedding, config.output.average_precision) == (
        "memory",
        "pool",
        "step",
    )


def test_synthetic_dataset_brings_its_preset_and_others_do_not() -> None:
    preset = load_yaml(PRESETS / "synthetic.yaml")
    assert preset["dataset"] == "synthetic" and preset["weights"] is None
    command = TrainCommand.parse([])
    assert command.preset == "synthetic"
    assert {name: flatten(command.config)[name] for name in preset} == preset
    assert TrainCommand.parse(["--dataset", "folder"]).preset is None
    assert parse("--arch resnet18").data.height == preset["height"]


@pytest.mark.parametrize(
    "line",
    ["--config paper_osnet --lr 0.5 --epochs 7", "--lr 0.5 --epochs=7 --config paper_osnet",
     "--lr 0.5 --config paper_osnet --epochs 7"],
)  # fmt: skip
def test_flags_win_over_the_preset_wherever_they_stand(line: str) -> None:
    config = parse(line)
    assert (config.training.lr, config.training.epochs) == (0.5, 7)
    assert (config.model.arch, config.data.batch_size, config.data.camstyle) == ("osnet_x1_0", 64, True)


@pytest.mark.parametrize("name", preset_names())
def test_every_packaged_preset_loads(name: str) -> None:
    config = parse(f"--config {name}")
    for key, value in yaml.safe_load((PRESETS / f"{name}.yaml").read_text()).items():
        assert flatten(config)[key] == value


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    config = parse(
        "--weights none --no-camstyle --amp --threshold -0.5 --lr 1e-3 --neighbors 64 --seed 3 --dataset folder "
        "--data-dir /d"
    )
    assert (config.model.weights, config.data.camstyle, config.runtime.amp) == (None, False, True)
    assert (config.method.threshold, config.training.lr, config.method.neighbors) == (-0.5, 0.001, 64)
    assert (config.runtime.seed, config.data.data_dir) == (3, "/d")
    preset = tmp_path / "mine.yaml"
    preset.write_text("weights: null\nlr: 1e-3\ndelta: 5\nneighbors: 0\namp: true\nepochs: 2\n")
    config = parse(f"--config {preset}")
    assert (config.model.weights, config.training.lr, config.method.delta) == (None, 0.001, 5.0)
    assert isinstance(config.method.delta, float)
    assert (config.method.neighbors, config.runtime.amp, config.training.epochs) == (0, True, 2)


@pytest.mark.parametrize("value", ["auto", "on", "off", "true", "[1, 2]", "~"])
def test_an_option_of_earlier_versions_is_read_without_effect(tmp_path: Path, value: str) -> None:
    preset = tmp_path / "old.yaml"
    preset.write_text(f"dataset: folder\ndata_dir: /d\ncache: {value}\nlr: 0.5\n")
    config = parse(f"--config {preset}")
    assert (config.training.lr, config.method.neighbors) == (0.5, 256)
    assert "cache" not in flatten(config) and "cache" not in OPTIONS
    preset.write_text(f"cache: {value}\ncach: auto\n")
    assert complaint(f"--config {preset}").startswith(f"{preset}: unknown key 'cach'")
    assert "--cache" in complaint("--dataset folder --data-dir /d --cache on")


@pytest.mark.parametrize(
    ("flag", "word", "value"),
    [("--channels-last", "true", True), ("--no-channels-last", "off", False), ("", "auto", None), ("", "null", None)],
)  # fmt: skip
def test_the_memory_layout_is_on_off_or_left_to_the_machine(
    tmp_path: Path, flag: str, word: str, value: bool | None
) -> None:
    assert parse(f"--dataset folder --data-dir /d {flag}").runtime.channels_last is value
    (tmp_path / "mine.yaml").write_text(f"channels_last: {word}\n")
    assert parse(f"--config {tmp_path / 'mine.yaml'}").runtime.channels_last is value
    (tmp_path / "mine.yaml").write_text("channels_last: 1\n")
    assert "channels_last: must be true or false, or auto, got '1'" in complaint(
        f"--config {tmp_path / 'mine.yaml'}"
    )


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_keeps_the_layout_it_began_with(tmp_path: Path, before: bool) -> None:
    config = config_from({"dataset": "folder", "data_dir": "/d", "channels_last": before})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse(f"--resume {tmp_path}").runtime.channels_last is before
    other = "--no-channels-last" if before else "--channels-last"
    assert f"which has {before}" in complaint(f"--resume {tmp_path} {other}")


def test_the_feature_to_rank_with_follows_the_embedding() -> None:
    kinds = {
        line: parse(f"--dataset folder --data-dir /d --arch osnet_x1_0 {line}").model.retrieval_feature
        for line in ("", "--embedding fc", "--embedding fc-relu", "--embedding fc --retrieval-feature after")
    }
    assert list(kinds.values()) == ["before", "before", "after", "after"]
    assert "--retrieval-feature before contradicts --embedding fc-relu" in complaint(
        "--dataset folder --data-dir /d --embedding fc-relu --retrieval-feature before"
    )


def test_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = parse("--config paper_resnet50 --lambda-nh 0 --seed 9 --output-dir elsewhere --weights none")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = parse(f"--config {tmp_path / 'config.yaml'}")
    assert again == dataclasses.replace(config, output=dataclasses.replace(config.output, output_dir=None))


def test_a_path_of_any_characters_reads_back_equal(tmp_path: Path) -> None:
    for mark in [*"\x85\u2028\u2029\n\t\x7f\ufeffé\udcff'\"", ": ", " #"]:
        folder = f"/a{mark}b {mark} c" + 100 * " é" + mark
        config = config_from({"dataset": "folder", "data_dir": folder, "weights": f"{mark}w"})
        write_text(tmp_path / "config.yaml", to_yaml(config))
        values = load_yaml(tmp_path / "config.yaml")
        assert (values["data_dir"], values["weights"]) == (folder, f"{mark}w")
        escaped = mark in "\x85\u2028\u2029"
        assert ("é" in (tmp_path / "config.yaml").read_text(encoding="utf-8")) != escaped


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--epoch 3", "unknown flag '--epoch'; did you mean '--epochs'? (--help lists the flags)"),
        ("--data_dir=x", "unknown flag '--data_dir'; did you mean '--data-dir'? (--help lists the flags)"),
        ("--zzz", "unknown flag '--zzz' (--help lists the flags)"),
        ("--lr 0.1 stray", "unexpected argument 'stray' (--help lists the flags)"),
        ("--epochs many", "--epochs: must be a whole number >= 1 and < 1000000000, got 'many'"),
        ("--lr fast", "--lr: must be a number > 0 and <= 1e15, got 'fast'"),
        ("--epochs", "--epochs needs a value (INT): passes over"),
        ("--lr --seed 1", "--lr needs a value (NUMBER): "),
        ("--loss-kind mmlc", "--loss-kind: must be one of mmcl, l2, got 'mmlc'; did you mean 'mmcl'?"),
        ("--config paper_rensnet50", "unknown preset 'paper_rensnet50'; did you mean 'paper_resnet50'?"),
        ("--config=", "unknown preset ''; presets: market1501_osnet_x0_25_128x64, "),
        ("--config no/such.yaml", "cannot read no/such.yaml: No such file or directory"),
        ("--arch resnet19", "--arch: must be one of resnet18, resnet34, "),
        ("--arch osnet_0_5", "--arch: must be one of "),
        (
            "--data-dir crops",
            "--data-dir crops needs --dataset: folder (any tree of crops), or one of synthetic, market1501, ",
        ),
        ("--lr -1", "--lr: must be a number > 0 and <= 1e15, got '-1.0'"),
        ("--lr nan", "--lr: must be a number > 0 and <= 1e15, got 'nan'"),
        ("--epochs 0", "--epochs: must be a whole number >= 1 and < 1000000000, got '0'"),
        ("--threshold 1.5", "--threshold: must be a number >= -1 and <= 1, got '1.5'"),
        ("--height 8", "--height: must be a whole number >= 16 and <= 8192, got '8'"),
        ("--batch-size 1", "--batch-size: must be a whole number >= 2 and < 1000000000, got '1'"),
        ("--lambda-sym -0.1", "--lambda-sym: must be a number >= 0 and <= 1e30, got '-0.1'"),
        (
            "--lambda-base 0 --lambda-sym 0 --lambda-nh 0",
            "--lambda-base, --lambda-sym and --lambda-nh are all 0",
        ),
        ("--resume nowhere", "--resume nowhere: no run there (config.yaml is missing)"),
        ("--output-dir=", "--output-dir: must be the name of a file or folder, or none, got ''"),
        ("--data-dir= --dataset folder", "--data-dir: must be the name of a file or folder, or none, got ''"),
        ("--resume=", "--resume: must be the name of a file or folder, or none, got ''"),
        ("--resume nowhere --config synthetic", "--config cannot be given with --resume"),
    ],
)
def test_bad_command_lines_are_one_clear_line(line: str, message: str) -> None:
    assert complaint(line).startswith(message)


@pytest.mark.parametrize(
    ("flags", "least", "bound", "past"),
    [
        ("--neighbors --min-rank", ">= 0", "< 2147483648", 2147483648),
        ("--delta --lambda-base --lambda-sym --lambda-nh --weight-decay", ">= 0", "<= 1e30", 1.1e30),
        ("--lr", "> 0", "<= 1e15", 1.1e15),
        ("--backbone-lr-mult", ">= 0", "<= 1e15", 1.1e15),
        ("--height --width", ">= 16", "<= 8192", 8193),
    ],
)
def test_a_number_that_training_cannot_count_with_is_refused_at_once(
    flags: str, least: str, bound: str, past: float
) -> None:
    sign, most = bound.split()
    for flag in flags.split():
        name = flag[2:].replace("-", "_")
        kind = "whole number" if isinstance(past, int) else "number"
        message = f"{flag}: must be a {kind} {least} and {bound}, got '{past}'"
        last = int(most) - 1 if sign == "<" else most
        assert flatten(parse(f"{flag} {last}"))[name] == float(last)
        assert complaint(f"{flag} {past}") == message
        if name in LabelCommand.shared:
            line = ["f.npz", "--output", "l.npz", flag]
            assert LabelCommand.parse([*line, str(last)]).given == {name: last}
            with pytest.raises(UserError, match=f"^{message}$"):
                LabelCommand.parse([*line, str(past)])


def test_every_number_has_a_least_and_a_largest_value() -> None:
    """So a value that is not finite, or that no operation can count with, is out of range."""
    declared = [*OPTIONS.values(), *(one for command in COMMANDS for one in options_of(command).values())]
    numbers = [one for one in declared if one.kind in (int, float)]
    assert len(numbers) > 30
    assert [one.name for one in numbers if not {">", "<"} <= set(one.range)] == []


def test_unknown_preset_lists_those_there_are() -> None:
    presets = "market1501_osnet_x0_25_128x64, market1501_osnet_x0_25_256x128, paper_osnet, paper_resnet50"
    assert f"presets: {presets}, synthetic, veri776_resnet50" in complaint("--config x")


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(parse("--dataset market1501 --lr 0.25 --workers 3")))
    config = parse(
        f"--resume {tmp_path} --workers 0 --image-cache off --device cpu --data-dir /moved --lr 0.25"
    )
    assert (config.training.lr, config.data.workers, config.runtime.device) == (0.25, 0, "cpu")
    assert config.data.image_cache == "off"
    assert (config.data.data_dir, config.output.output_dir) == ("/moved", str(tmp_path))
    (tmp_path / "checkpoint.pt").touch()
    command = TrainCommand.parse(["--resume", str(tmp_path / "checkpoint.pt")])
    assert (command.resume, command.config.training.lr) == (tmp_path, 0.25)
    assert complaint(f"--resume {tmp_path / 'config.yaml'}") == (
        f"--resume {tmp_path / 'config.yaml'}: must be the folder of a run, or its checkpoint.pt"
    )
    assert complaint(f"--resume {tmp_path} --lr 0.5") == (
        f"--lr 0.5 contradicts the run in {tmp_path}, which has 0.25"
    )
    # What changes nothing in training may be given anew, and what was chosen may be asked for as it was at first.
    whole = "--rerank --checkpoint-every 3 --retrieval-feature auto --arch osnet_x0_25"
    (tmp_path / "config.yaml").write_text(to_yaml(parse(f"--dataset market1501 {whole}")))
    again = parse(
        f"--resume {tmp_path} --no-rerank --checkpoint-every 1 --eval-every 2 --retrieval-feature auto"
    )
    assert (again.output.rerank, again.output.checkpoint_every, again.output.eval_every) == (False, 1, 2)
    assert complaint(f"--resume {tmp_path} --amp").startswith("--amp contradicts the run in")
    (tmp_path / "config.yaml").write_text(to_yaml(parse("--dataset market1501 --amp")))
    assert complaint(f"--resume {tmp_path} --no-amp").startswith("--no-amp contradicts the run in")
    (tmp_path / "config.yaml").write_text(
        to_yaml(parse("--dataset market1501 --lambda-base 1 --lambda-sym 0 --lambda-nh 0 --embedding pool"))
    )
    # What was given is named, also where it does not fit another setting of the run.
    assert complaint(f"--resume {tmp_path} --lambda-base 0") == (
        f"--lambda-base 0.0 contradicts the run in {tmp_path}, which has 1.0"
    )
    assert complaint(f"--resume {tmp_path} --embedding fc-relu --arch resnet50").startswith(
        "--embedding fc-relu contradicts the run in"
    )
    for folder in ("o", "none"):
        assert complaint(f"--resume {tmp_path} --output-dir {folder}").startswith(
            "--output-dir cannot be given with --resume"
        )
    assert parse(f"--resume {tmp_path} --output-dir {tmp_path}/.").output.output_dir == str(tmp_path)


def test_no_value_of_any_flag_is_more_than_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(parse("--dataset market1501")))
    network = ["--arch", "resnet18", "--weights", "none"]
    for command, words in (
        (TrainCommand, []),
        (TrainCommand, ["--resume", str(tmp_path)]),
        (EvaluateCommand, network),
        (ExtractCommand, [*network, "--output", "o.npz"]),
        (LabelCommand, ["f.npz", "--output", "l.npz"]),
        (SearchCommand, [*network, "--gallery", "g", "--query", "q"]),
        (ExportCommand, [*network, "--output", "o.onnx"]),
        (ReportCommand, ["run"]),
    ):
        own = [declared.flag for declared in options_of(command).values() if declared.flag]
        for flag in [*own, *(OPTIONS[name].flag for name in command.shared)]:
            for value in ("none", "-1", "nan", "", "~nobody/x", "\udcff"):
                try:
                    found = command.parse([*words, f"{flag}={value}"])
                except UserError as error:
                    assert "\n" not in str(error)
                else:
                    assert isinstance(found, command)


def test_a_folder_alone_does_not_say_which_dataset_is_in_it(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("data_dir: crops\n")
    for line in ("--data-dir crops", "--data-dir crops --arch resnet18", f"--config {preset}"):
        assert "crops needs --dataset: folder" in complaint(line)
    for parse_tool in (EvaluateCommand.parse, ExtractCommand.parse):
        words = ["--arch", "resnet18", "--weights", "none", "--data-dir", "crops", "--output", "f.npz"]
        with pytest.raises(UserError, match="crops needs --dataset: folder"):
            parse_tool(words[:6] if parse_tool == EvaluateCommand.parse else words)
    preset.write_text("dataset: cuhk03\n")
    assert parse(f"--config {preset} --data-dir /d").data.data_dir == "/d"
    assert parse("--dataset synthetic --data-dir /d").data.height == 64
    assert EvaluateCommand.parse(["--checkpoint", "run", "--data-dir", "/d"]).given == {"data_dir": "/d"}


@pytest.mark.parametrize(
    ("parse_tool", "words"),
    [
        (EvaluateCommand.parse, []),
        (ExtractCommand.parse, ["--output", "f.npz"]),
        (ExportCommand.parse, ["--output", "m.onnx"]),
        (SearchCommand.parse, ["--gallery", "g", "--query", "q"]),
    ],
)
def test_a_network_without_a_checkpoint_needs_weights(
    parse_tool: Callable[[list[str]], object], words: list[str], tmp_path: Path
) -> None:
    needed = " needs --weights: a file, imagenet (ResNets), or none for random ones"
    preset = tmp_path / "mine.yaml"
    preset.write_text("arch: osnet_x0_5\n")
    for source in (["--arch", "osnet_x0_5"], ["--config", str(preset)]):
        with pytest.raises(UserError) as caught:
            parse_tool([*words, *source])
        assert str(caught.value) == " ".join(source) + needed
        parse_tool([*words, *source, "--weights", "none"])
    preset.write_text("arch: osnet_x0_5\nweights: null\n")
    parse_tool([*words, "--config", str(preset)])
    assert (
        parse("--arch osnet_x0_5").model.weights is None
    )  # the trainer's own preset goes on from random ones


def test_home_is_understood_wherever_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LabelCommand.parse(["~/f.npz", "--output=~/l.npz"]) == LabelCommand(
        features=tmp_path / "f.npz", output=tmp_path / "l.npz"
    )
    network = ["--arch", "resnet18", "--weights=~/w.pt"]
    extract = ExtractCommand.parse([*network, "--dataset=folder", "--data-dir=~/d", "--output=~/f.npz"])
    assert extract.output == tmp_path / "f.npz"
    assert [extract.given[name] for name in ("weights", "data_dir")] == [
        str(tmp_path / "w.pt"), str(tmp_path / "d"),
    ]  # fmt: skip
    assert ExportCommand.parse(["--checkpoint=~/r", "--output=~/m.onnx"]).output == tmp_path / "m.onnx"
    search = SearchCommand.parse(["--checkpoint=~/r", "--gallery=~/g", "--query=~/q", "--picture=~/p.png"])
    assert (search.checkpoint, search.gallery, search.query, search.picture) == tuple(
        tmp_path / name for name in ("r", "g", "q", "p.png")
    )
    report = ReportCommand.parse(["~/r", "--output=~/o"])
    assert (report.run, report.output) == (tmp_path / "r", tmp_path / "o")
    assert parse("--output-dir=~/o").output.output_dir == str(tmp_path / "o")


def test_evaluate_command_needs_something_to_evaluate() -> None:
    with pytest.raises(UserError, match="no network to use: give --checkpoint, or --arch and --weights"):
        EvaluateCommand.parse(["--dataset", "market1501"])
    with pytest.raises(UserError, match="unknown flag '--lr'"):
        EvaluateCommand.parse(["--checkpoint", "x", "--lr", "1"])
    command = EvaluateCommand.parse(["--checkpoint", "run", "--json", "--batch-size", "8"])
    assert (command.checkpoint, command.json, command.given) == (Path("run"), True, {"batch_size": 8})


def test_a_run_that_is_named_in_another_commands_way_is_answered_with_this_commands_way(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    (tmp_path / "sub").mkdir()
    many = "a" * 300  # no name of a file
    for command, line, meant in (
        (EvaluateCommand, f"{tmp_path} --json", f"unexpected argument '{tmp_path}'; did you mean --checkpoint /"),
        (TrainCommand, f"{tmp_path}", f"unexpected argument '{tmp_path}'; did you mean --resume {tmp_path}?"),
        (SearchCommand, "a/checkpoint.pt", "unexpected argument 'a/checkpoint.pt'; did you mean --checkpoint a/check"),
        (ExportCommand, f"{tmp_path}/sub", f"unexpected argument '{tmp_path}/sub' (--help lists the flags)"),
        (ExportCommand, many, f"unexpected argument '{many}' (--help lists the flags)"),
        (TrainCommand, "--checkpoint run", "unknown flag '--checkpoint'; did you mean '--resume'? (--help"),
        (ExtractCommand, "--resume=run", "unknown flag '--resume'; did you mean '--checkpoint'? (--help"),
        (ReportCommand, "--checkpoint run", "unknown flag '--checkpoint'; give RUN without a flag (--help"),
        (LabelCommand, "--checkpoint run", "unknown flag '--checkpoint' (--help lists the flags)"),
        (TrainCommand, f"--config {tmp_path}", f"unknown preset '{tmp_path}'; did you mean {tmp_path}/config.yaml"),
        (TrainCommand, f"--config {many}", f"unknown preset '{many}'; presets: "),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{re.escape(meant)}"):
            command.parse(line.split())
    with pytest.raises(UserError, match=r"did you mean --resume 'my run/checkpoint\.pt'\?"):
        TrainCommand.parse(["my run/checkpoint.pt"])


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"snnet.{name}" for name in listing.COMMANDS} == {command.module for command in COMMANDS}
    for words in ([], ["--help"]):
        listing.main(words)
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "  python -m snnet.train     train a network on images without labels"
        assert len(lines) == 1 + len(COMMANDS)
    with pytest.raises(UserError, match=r"^the name of this command has a dot: python -m snnet\.label$"):
        listing.main(["label", "--output", "x"])
    with pytest.raises(
        UserError, match=r"^unknown command 'trian'; did you mean 'train'\? \(python -m snnet lists"
    ):
        listing.main(["trian"])


def test_help_names_every_flag_once_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        TrainCommand.parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, option in OPTIONS.items():
        assert option.flag in text, name
        assert len(option.help) > 10 and "default" not in option.help  # which is added
    assert "--lr NUMBER" in text and "default 0.1" in text and "default 0.6" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_each_of_its_flags_once(
    command: type[Command], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {command.module} {command.usage}")
    flags = [declared.flag or str(declared.metavar) for declared in options_of(command).values()]
    flags += [OPTIONS[name].flag for name in command.shared]
    assert [len(re.findall(rf"^  {flag}(?![-\w])", text, re.M)) for flag in flags] == [1] * len(flags)
    assert ") (default none)" not in (words := " ".join(text.split()))
    assert ("(default imagenet" in words) == (command is TrainCommand)  # another takes none that is not named
    source = {
        LabelCommand: "",
        TrainCommand: "",
        ReportCommand: "Settings that are not given come from the run, but for those of its machine.",
    }
    assert source.get(command, "folder of a run: settings that are not given come from it") in words


def test_files_are_kept_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("dataset: folder\ndata_dir: crops\nweights: None\n")
    config = TrainCommand.parse(["--config", "a.yaml"]).config
    assert (config.data.data_dir, config.model.weights) == (str(tmp_path / "crops"), None)
    config = TrainCommand.parse(["--dataset", "folder", "--data-dir", "~/x", "--weights", "imagenet"]).config
    assert config.data.data_dir == str(Path.home() / "x") and config.model.weights == "imagenet"
