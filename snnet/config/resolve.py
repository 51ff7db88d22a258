"""Where a configuration comes from: the defaults, a preset, the flags, the run to resume. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from snnet.config.fields import suggestion
from snnet.config.options import GROUPS, OPTIONS, RETIRED, Config, config_from, flatten, members
from snnet.errors import UserError
from snnet.files.paths import expand_home
from snnet.files.plain_yaml import load_plain_yaml
from snnet.files.run_files import CHECKPOINT_FILE, CONFIG_FILE
from snnet.files.text import FileFault, shown

PRESETS = Path(__file__).parent / "presets"
# What may differ between the parts of a resumed run: it changes nothing in training but rounding (another device).
RESUME_MAY_CHANGE = (
    "device", "workers", "image_cache", "data_dir", "rerank", "eval_every", "checkpoint_every", "output_dir",
)  # fmt: skip
# What was chosen for the machine of a run. It does not carry over to other commands.
OF_THE_MACHINE = ("device", "deterministic", "channels_last", "image_cache", "workers")


def resolve(preset: str | None, given: dict[str, Any]) -> Config:
    """Defaults, then the preset (a packaged name or a YAML file), then the given flags."""
    values = {**preset_values(preset), **given}
    if values.get("data_dir") is not None and "dataset" not in values:
        others = ", ".join(name for name in OPTIONS["dataset"].choices if name != "folder")
        raise UserError(
            f"--data-dir {values['data_dir']} needs --dataset: folder (any tree of crops), or one of {others}"
        )
    return config_from(with_whole_paths(values))


def resumed(run: Path, given: dict[str, Any]) -> Config:
    """The configuration that the run in the folder ``run`` began with, and the flags that may change it."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"--resume {run}: no run there ({CONFIG_FILE} is missing)")
    values = load_yaml(path)
    asked_for = given.get("output_dir", str(run))
    if asked_for is None or Path(asked_for).resolve() != run.resolve():
        raise UserError(f"--output-dir cannot be given with --resume: the run continues in {run}")
    given = with_whole_paths(given)
    for name, value in given.items():
        was = values.get(name, OPTIONS[name].default)
        if name in RESUME_MAY_CHANGE or value == was or _resolved(values, name, value) == was:
            continue
        flag = OPTIONS[name].flag
        asked = f"{flag} {value}" if not isinstance(value, bool) else flag if value else f"--no-{flag[2:]}"
        raise UserError(f"{asked} contradicts the run in {run}, which has {was}")
    return config_from({**values, **given, "output_dir": str(run)})


def _resolved(values: dict[str, Any], name: str, value: Any) -> Any:
    """What the value of a flag comes to in the run with these ``values``: "auto" is written out there."""
    try:
        return flatten(config_from({**values, name: value}))[name]
    except UserError:
        return value


def config_from_run(values: dict[str, Any], given: dict[str, Any]) -> Config:
    """The configuration ``values`` of a run for another command.

    Flags win, and what was chosen for the run's machine is dropped.
    """
    return config_from({name: value for name, value in values.items() if name not in OF_THE_MACHINE} | given)


def run_of(path: Path) -> Path:
    """The folder of the run that --resume names by its folder or its checkpoint."""
    if path.name == CHECKPOINT_FILE and not path.is_dir():
        return path.parent
    if path.is_file():
        raise UserError(f"--resume {path}: must be the folder of a run, or its {CHECKPOINT_FILE}")
    return path


def default_preset(given: dict[str, Any]) -> str | None:
    """The preset of a command line without --config; a folder alone does not say which dataset is in it."""
    unnamed = None if given.get("data_dir") is not None else OPTIONS["dataset"].default
    return "synthetic" if given.get("dataset", unnamed) == "synthetic" else None


def preset_names() -> list[str]:
    """The packaged presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_values(preset: str | None) -> dict[str, Any]:
    """The values of a packaged preset or a YAML file, by flat name."""
    names = preset_names()
    if preset is None:
        return {}
    if preset in names:
        return load_yaml(PRESETS / f"{preset}.yaml")
    if preset.endswith((".yaml", ".yml")):
        return load_yaml(Path(expand_home(preset)))
    of_run = Path(expand_home(preset), CONFIG_FILE)
    meant = f"; did you mean {of_run}?" if os.path.isfile(of_run) else suggestion(preset, names)
    raise UserError(f"unknown preset '{preset}'{meant}; presets: {', '.join(names)}; or a .yaml file")


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
    # PyYAML writes these line breaks as they are, and reads them as others: a file with one has escapes.
    readable = not any(mark in str(value) for value in values.values() for mark in "\x85\u2028\u2029")
    lines = []
    for group in GROUPS:
        lines.append(f"# {group}\n")
        written = {name: values[name] for name in members(group, but=("output_dir",))}
        lines.append(yaml.safe_dump(written, sort_keys=False, allow_unicode=readable))
    return "".join(lines)


def checked_values(values: dict[Any, Any], source: str) -> dict[str, Any]:
    """The mapping, each key known and each value of its option's type; ``source`` is named in errors."""
    for key in values:
        if key not in OPTIONS and key not in RETIRED:
            raise UserError(f"{source}: unknown key '{shown(key)}'{suggestion(shown(key), OPTIONS)}")
    return {
        key: OPTIONS[key].checked(value, f"{source}: {key}")
        for key, value in values.items()
        if key in OPTIONS
    }


def with_whole_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Files and folders by their whole path: a run may be resumed or evaluated from another folder."""
    whole = {
        name: str(Path(value).absolute())
        for name in ("data_dir", "weights")
        if (value := values.get(name)) is not None and not (name == "weights" and value == "imagenet")
    }
    return {**values, **whole}
