"""``python -m snnet.evaluate``: CMC and mAP of a checkpoint, or of weights from elsewhere."""

from __future__ import annotations

import sys

from snnet.errors import UserError, run_command
from snnet.flags import EvaluateCommand, answer_early, checked_values, parse_evaluate_command, resolve

if __name__ == "__main__":
    answer_early(parse_evaluate_command)

import contextlib
import json
from typing import Any

from snnet.checkpoint import load_checkpoint, load_state
from snnet.config import Config, config_from
from snnet.data import build_dataset
from snnet.features import decode_retrieval_set, evaluate_retrieval
from snnet.models import ReIDModel, build_model
from snnet.runlog import rank_record, rank_table
from snnet.runtime import prepare, show_warnings_as_lines

BELONG_TO_CHECKPOINT = ("arch", "embedding", "weights")


def main() -> None:
    show_warnings_as_lines()
    command = parse_evaluate_command(sys.argv[1:])
    # With --json, stdout is that object alone.
    with contextlib.redirect_stdout(sys.stderr):
        result = evaluate(command)
    if command.json:
        print(json.dumps(result))
    else:
        print(rank_table({result["arch"]: result}))


def evaluate(command: EvaluateCommand) -> dict[str, Any]:
    """Rank the gallery for every query; returns :func:`snnet.runlog.rank_record` and what was evaluated.

    Raises :class:`~snnet.errors.UserError` for a checkpoint, weights or data that cannot be used.
    """
    config, checkpoint = _configuration(command)
    placement = prepare(config.runtime)
    data = config.data
    model = _model(command, config, checkpoint)
    placement.model(model)
    dataset = build_dataset(data.dataset, data.data_dir, name_pattern=data.name_pattern)
    retrieval = decode_retrieval_set(dataset, config)
    if retrieval is None:
        raise UserError(f"dataset {data.dataset} has no query and gallery: there is nothing to evaluate on")
    print(dataset.summary())
    return {
        "dataset": data.dataset,
        "arch": config.model.arch,
        "checkpoint": str(command.checkpoint) if command.checkpoint else None,
        "weights": None if command.checkpoint else config.model.weights,
        **rank_record(evaluate_retrieval(model, retrieval, config, placement)),
    }


def _model(command: EvaluateCommand, config: Config, checkpoint: dict[str, Any] | None) -> ReIDModel:
    arch = config.model
    if command.checkpoint is None or checkpoint is None:
        return build_model(arch.arch, embedding=arch.embedding, weights=arch.weights)
    model = build_model(arch.arch, embedding=arch.embedding)
    load_state(model, checkpoint["model"], command.checkpoint, "network")
    return model


def _configuration(command: EvaluateCommand) -> tuple[Config, dict[str, Any] | None]:
    """What to evaluate, and the checkpoint where it comes from one."""
    if command.checkpoint is None:
        return resolve(command.preset, command.given), None
    checkpoint = load_checkpoint(command.checkpoint)
    trained = checked_values(checkpoint["config"], str(command.checkpoint))
    if not {"arch", "embedding"} <= trained.keys():
        raise UserError(f"{command.checkpoint} is not a whole checkpoint: its configuration is missing")
    for name in BELONG_TO_CHECKPOINT:
        if name in command.given and command.given[name] != trained.get(name):
            given, was = command.given[name], trained.get(name)
            raise UserError(f"--{name} {given} contradicts {command.checkpoint}, which has {was}")
    if command.given.get("dataset", trained.get("dataset")) != trained.get("dataset"):
        trained |= {"data_dir": None, "name_pattern": None}  # these were the other dataset's
    # How the run was executed is its own affair; what follows from its machine does not carry over.
    machine = {"device": "auto", "deterministic": False}
    return config_from({**trained, **machine, **command.given}), checkpoint


if __name__ == "__main__":
    run_command(main)
