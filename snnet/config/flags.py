"""Command lines and YAML presets into a :class:`~snnet.config.options.Config`. Reading them imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from snnet.config.options import GROUPS, OPTIONS, RETIRED, Config, Option, config_from, flatten
from snnet.errors import UserError
from snnet.files.paths import expand_home
from snnet.files.plain_yaml import load_plain_yaml
from snnet.files.text import FileFault, shown
from snnet.system.command import run_command
from snnet.system.terminal import open_streams

PRESETS = Path(__file__).parent / "presets"
CONFIG_FILE = "config.yaml"  # the resolved configuration in the folder of a run
CHECKPOINT_FILE = "checkpoint.pt"  # here, because command lines are read before torch is imported
RESUME_MAY_CHANGE = ("device", "workers", "data_dir")  # what may differ between the parts of a resumed run

FILES = ("data_dir", "weights", "output_dir")  # options that name a file or a folder
TRAINING_ONLY = ("camstyle", "output_dir", "eval_every", "checkpoint_every", "deterministic")
EVALUATE_OPTIONS = tuple(
    name for name, o in OPTIONS.items() if o.group not in ("training", "method") and name not in TRAINING_ONLY
)


@dataclass(frozen=True)
class TrainCommand:
    """A parsed ``snnet.train`` command line."""

    config: Config
    resume: Path | None  # the folder of the run to continue
    preset: str | None  # the preset or YAML file in use
    quiet: bool = False


@dataclass(frozen=True)
class EvaluateCommand:
    """A parsed ``snnet.evaluate`` command line; ``given`` holds the flags that were on it, by flat name."""

    checkpoint: Path | None
    json: bool
    preset: str | None
    given: dict[str, Any]
    quiet: bool = False
    query_expansion: int | None = None  # neighbours
    roc: bool = False


def answer_early(parse: Callable[[list[str]], object]) -> None:
    """Let ``parse`` answer --help and a mistyped flag before the command's file goes on to import torch.

    What the environment forces on snnet_kernels and it does not have is answered here too.
    """

    open_streams()

    def main() -> None:
        parse(sys.argv[1:])
        try:
            import snnet_kernels  # noqa: F401
        except (ImportError, ValueError) as error:
            if not str(error).startswith("SNNET_"):
                raise
            raise UserError(str(error)) from error

    if os.environ.get("LOCAL_RANK", "0") == "0":
        run_command(main)
        return
    # The first process of this machine says the same.
    with open(os.devnull, "w") as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
        run_command(main)


def parse_train_command(arguments: list[str]) -> TrainCommand:
    """Flags win over the preset, wherever they stand; a resumed run keeps the configuration it began with."""
    parser = CommandParser(
        "snnet.train",
        "Train SNNet without labels. Without --config, the dataset 'synthetic' uses the preset 'synthetic', "
        "sized for a small CPU; every other dataset uses the defaults shown, the paper's full recipe.",
    )
    parser.add_config()
    parser.add_argument(
        "--resume",
        metavar="FILE|DIR",
        type=Path,
        help="continue the run in this folder, or that this checkpoint is of, as it was set",
    )
    parser.add_options(OPTIONS)
    given = parser.parse(arguments)
    preset, resume, quiet = given.pop("config", None), given.pop("resume", None), given.pop("quiet", False)
    if resume is not None:
        if preset is not None:
            raise UserError("--config cannot be given with --resume: the run keeps its own configuration")
        run = _run_of(resume)
        return TrainCommand(_resumed_config(run, given), run, None, quiet)
    preset = preset or default_preset(given)
    return TrainCommand(resolve(preset, given), None, preset, quiet)


def parse_evaluate_command(arguments: list[str]) -> EvaluateCommand:
    """Checked as far as that goes without opening the checkpoint."""
    parser = CommandParser(
        "snnet.evaluate",
        "Rank the gallery for every query and report CMC and mAP, for a checkpoint or for --arch and --weights. "
        "What is not given comes from the checkpoint; without one, from --config or the defaults shown.",
    )
    parser.add_network()
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--query-expansion",
        metavar="INT",
        type=whole_number,
        help="also rank with each feature drawn towards those of its INT nearest images (fast-reid takes 10)",
    )
    parser.add_argument(
        "--roc",
        action="store_true",
        help="also report how many true pairs a threshold accepts that accepts 0.01, 0.1 and 1 percent of false ones",
    )
    parser.add_options(EVALUATE_OPTIONS)
    given = parser.parse(arguments)
    more = {"query_expansion": given.pop("query_expansion", None), "roc": given.pop("roc", False)}
    checkpoint, preset = given.pop("checkpoint", None), given.pop("config", None)
    as_json, quiet = given.pop("json", False), given.pop("quiet", False)
    preset = network_preset(checkpoint, preset, given, "nothing to evaluate", default_preset(given))
    return EvaluateCommand(checkpoint, as_json, preset, given, quiet, **more)


def network_preset(
    checkpoint: Path | None, config: str | None, given: dict[str, Any], lacking: str, default: str | None
) -> str | None:
    """Check the flags that say where a command's network comes from; returns ``config``, else ``default``.

    Without a checkpoint the weights must be named, by --weights or in the file of --config: features of a
    network that nobody trained look like any others.
    """
    if checkpoint is not None:
        if config is not None:
            raise UserError("--config cannot be given with --checkpoint, which has its own configuration")
        config_from(given)
        return default
    if "arch" not in given and config is None:
        raise UserError(f"{lacking}: give --checkpoint, or --arch and --weights")
    if "weights" not in {**_preset_values(config), **given}:
        source = f"--arch {given['arch']}" if config is None else f"--config {config}"
        raise UserError(f"{source} needs --weights: a file, imagenet (ResNets), or none for random ones")
    resolve(config or default, given)
    return config or default


def resolve(preset: str | None, given: dict[str, Any]) -> Config:
    """Defaults, then the preset (a packaged name or a YAML file), then the given flags."""
    values = {**_preset_values(preset), **given}
    if values.get("data_dir") is not None and "dataset" not in values:
        others = ", ".join(name for name in get_args(OPTIONS["dataset"].type) if name != "folder")
        raise UserError(
            f"--data-dir {values['data_dir']} needs --dataset: folder (any tree of crops), or one of {others}"
        )
    return config_from({**values, **_absolute(values)})


def _absolute(values: dict[str, Any]) -> dict[str, str]:
    """Files and folders by their whole path: a run may be resumed or evaluated from another folder."""
    return {
        name: str(Path(expand_home(value)).absolute())
        for name in ("data_dir", "weights")
        if (value := values.get(name)) is not None and not (name == "weights" and value == "imagenet")
    }


def preset_names() -> list[str]:
    """The packaged presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_yaml(path: Path) -> dict[str, Any]:
    """A flat mapping of flag names to values, each key and type checked.

    Raises :class:`~snnet.errors.UserError` naming the file and the key.
    """
    try:
        values = load_plain_yaml(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except FileFault as error:
        raise UserError(f"{path} {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines 'flag_name: value', got a {type(values).__name__}")
    return checked_values(values, str(path))


def to_yaml(config: Config) -> str:
    """The configuration as a preset, all but ``output_dir``: the file lies in that folder, which may move."""
    values = flatten(config)
    lines = []
    for group in GROUPS:
        lines.append(f"# {group}\n")
        members = {n: v for n, v in values.items() if OPTIONS[n].group == group and n != "output_dir"}
        lines.append(yaml.safe_dump(members, sort_keys=False, allow_unicode=True))
    return "".join(lines)


def checked_values(values: dict[Any, Any], source: str) -> dict[str, Any]:
    """The mapping, each key known and each value of its option's type; ``source`` is named in errors."""
    for key in values:
        if key not in OPTIONS and key not in RETIRED:
            raise UserError(f"{source}: unknown key '{shown(key)}'{_suggestion(shown(key), OPTIONS)}")
    return {key: _checked(OPTIONS[key], value, source) for key, value in values.items() if key in OPTIONS}


def _preset_values(preset: str | None) -> dict[str, Any]:
    return {} if preset is None else load_yaml(_preset_path(preset))


def _preset_path(preset: str) -> Path:
    if preset in preset_names():
        return PRESETS / f"{preset}.yaml"
    if preset.endswith((".yaml", ".yml")):
        return Path(expand_home(preset))
    names = preset_names()
    raise UserError(
        f"unknown preset '{preset}'{_suggestion(preset, names)}; presets: {', '.join(names)}; or a .yaml file"
    )


def default_preset(given: dict[str, Any]) -> str | None:
    """The preset of a command line without --config; a folder alone does not say which dataset is in it."""
    unnamed = None if given.get("data_dir") is not None else OPTIONS["dataset"].default
    return "synthetic" if given.get("dataset", unnamed) == "synthetic" else None


def _run_of(resume: Path) -> Path:
    """The folder of the run that --resume names."""
    if resume.name == CHECKPOINT_FILE and not resume.is_dir():
        return resume.parent
    if resume.is_file():
        raise UserError(f"--resume {resume}: must be the folder of a run, or its {CHECKPOINT_FILE}")
    return resume


def _resumed_config(run: Path, given: dict[str, Any]) -> Config:
    path = run / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"--resume {run}: no run there ({CONFIG_FILE} is missing)")
    values = load_yaml(path)
    if "output_dir" in given and Path(given["output_dir"]).resolve() != run.resolve():
        raise UserError(f"--output-dir cannot be given with --resume: the run continues in {run}")
    given = {**given, **_absolute(given)}
    for name, value in given.items():
        if name not in (*RESUME_MAY_CHANGE, "output_dir") and value != values.get(
            name, OPTIONS[name].default
        ):
            was = values.get(name, OPTIONS[name].default)
            raise UserError(f"{OPTIONS[name].flag} {value} contradicts the run in {run}, which has {was}")
    return config_from({**values, **given, "output_dir": str(run)})


class CommandParser(argparse.ArgumentParser):
    """Flags from :data:`snnet.config.options.OPTIONS`; whatever is wrong is one line."""

    def __init__(self, module: str, description: str, usage: str = "[flags]") -> None:
        prog = f"python -m {module}"
        super().__init__(
            prog, f"{prog} {usage}", description, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        self.add_argument(
            "--quiet",
            action="store_true",
            help="no progress bars and no lines about what is being done: results, warnings and errors only",
        )

    def add_config(self) -> None:
        """Add --config."""
        self.add_argument(
            "--config", metavar="NAME|FILE.yaml", help=f"preset: {', '.join(preset_names())}; or a file"
        )

    def add_network(self) -> None:
        """Add the flags that :func:`network_preset` checks."""
        self.add_argument(
            "--checkpoint",
            metavar="FILE|DIR",
            type=Path,
            help="a checkpoint, or the folder of a run; without one --weights must be named, with --arch or --config",
        )
        self.add_config()

    def add_options(self, names: Collection[str], *, preset: bool = True) -> None:
        """Add flags of the configuration; ``preset``: whether the dataset may choose the preset synthetic."""
        synthetic = load_yaml(PRESETS / "synthetic.yaml") if preset else {}
        for group, cls in GROUPS.items():
            options = [option for name, option in OPTIONS.items() if name in names and option.group == group]
            section = self.add_argument_group(group, (cls.__doc__ or "").strip()) if options else self
            for option in options:
                defaults = f"default {_shown(option, option.default)}"
                if synthetic.get(option.name, option.default) != option.default:
                    defaults += f"; preset synthetic: {_shown(option, synthetic[option.name])}"
                text = f"{option.help} ({defaults})".replace("%", "%%")
                if option.type in (bool, bool | None):
                    section.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=text)
                else:
                    section.add_argument(
                        option.flag, type=_reader(option), metavar=_metavar(option), help=text
                    )

    def parse(self, arguments: list[str]) -> dict[str, Any]:
        """What was given, by flat name; ``~`` in the name of a file or a folder is the user's home."""
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            word = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
            kind = "unknown flag" if word.startswith("-") else "unexpected argument"
            raise UserError(
                f"{kind} '{word}'{_suggestion(word, self._option_string_actions)} (--help lists the flags)"
            )
        return {
            name: type(value)(expand_home(str(value)))
            if isinstance(value, Path) or (name in FILES and value is not None)
            else value
            for name, value in vars(given).items()
        }

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _reader(option: Option) -> Any:
    """A function that reads a flag's text, whose errors argparse puts behind the flag's name."""

    def read(text: str) -> Any:
        value: Any = text
        if option.type is int:
            with contextlib.suppress(ValueError):
                value = int(text)
        try:
            return _checked(option, value, "")
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _checked(option: Option, value: Any, source: str) -> Any:
    """``value`` as the option's type, in the ways YAML and the command line write it."""
    where = f"{source}: {option.name}: " if source else ""
    if get_origin(option.type) is Literal:
        choices = get_args(option.type)
        if isinstance(value, bool):  # YAML's words on and off
            value = "on" if value else "off"
        if value not in choices:
            hint = _suggestion(shown(value), choices)
            raise UserError(f"{where}must be one of {', '.join(choices)}, got '{shown(value)}'{hint}")
        return value
    if option.type is float and type(value) in (int, float, str):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return float(value)  # from an integer, and from 1e-3, which YAML takes for text
    if option.type == (bool | None) and value in (None, "auto"):
        return None
    if option.type == (str | None):
        value = None if isinstance(value, str) and value.lower() == "none" else value
        fits, needed = value is None or isinstance(value, str), "text or null"
    else:
        fits = type(value) is (bool if option.type == (bool | None) else option.type)
        needed = _WANTED[option.type]
    if not fits:
        raise UserError(f"{where}must be {needed}, got '{shown(value)}'")
    if type(value) is int and value.bit_length() > 63:
        raise UserError(f"{where}must be {needed} of at most 63 bits, got '{shown(value)}'")
    return value


_WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    bool | None: "true, false or auto",
    str: "text",
}


def _suggestion(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _metavar(option: Option) -> str:
    if get_origin(option.type) is Literal:
        return "|".join(get_args(option.type))
    return {int: "INT", float: "NUMBER"}.get(option.type, "TEXT")


def _shown(option: Option, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "auto" if option.type == (bool | None) else "none"
    return str(value)


def whole_number(text: str) -> int:
    """The type of a flag that is an integer of at least 1."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got '{text}'")
    return int(text)
