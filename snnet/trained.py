"""The network that a command works with: from a checkpoint, or from weights from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnet.checkpoint import load_checkpoint, load_state
from snnet.config import Config, config_from
from snnet.errors import UserError
from snnet.flags import checked_values, resolve
from snnet.models import ReIDModel, build_model
from snnet.runtime import Placement, prepare

BELONG_TO_CHECKPOINT = ("arch", "embedding", "weights")


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network in its place, and the configuration it works under."""

    model: ReIDModel
    config: Config
    placement: Placement


def load_trained_model(checkpoint: Path | None, preset: str | None, given: dict[str, Any]) -> TrainedModel:
    """The network of ``checkpoint`` (a file, or the folder of a run); without one, that of ``--weights``.

    What is not in ``given`` (values by flat name) comes from the checkpoint's configuration; without one,
    from the preset or the defaults. Seeds the process as the configuration says. Raises
    :class:`~snnet.errors.UserError` for a checkpoint or weights that cannot be used, and where ``given``
    contradicts the checkpoint.
    """
    contents = None if checkpoint is None else load_checkpoint(checkpoint)
    if contents is None:
        config = resolve(preset, given)
    else:
        config = _configuration(contents["config"], str(checkpoint), given)
    placement = prepare(config.runtime)
    arch = config.model
    model = build_model(
        arch.arch, embedding=arch.embedding, weights=arch.weights if contents is None else None
    )
    if contents is not None and checkpoint is not None:
        load_state(model, contents["model"], checkpoint, "network")
    placement.model(model)
    return TrainedModel(model, config, placement)


def _configuration(values: dict[str, Any], source: str, given: dict[str, Any]) -> Config:
    trained = checked_values(values, source)
    if not {"arch", "embedding"} <= trained.keys():
        raise UserError(f"{source} is not a whole checkpoint: its configuration is missing")
    for name in BELONG_TO_CHECKPOINT:
        if name in given and given[name] != trained.get(name):
            raise UserError(f"--{name} {given[name]} contradicts {source}, which has {trained.get(name)}")
    if given.get("dataset", trained.get("dataset")) != trained.get("dataset"):
        trained |= {"data_dir": None, "name_pattern": None}  # these were the other dataset's
    # How the run was executed is its own affair; what follows from its machine does not carry over.
    machine = {"device": "auto", "deterministic": False}
    return config_from({**trained, **machine, **given})
