"""The files of a run, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnet.config import Config, config_from
from snnet.errors import UserError
from snnet.flags import CHECKPOINT_FILE, CONFIG_FILE, load_yaml
from snnet.runlog import ENVIRONMENT_FILE, METRICS_FILE, RANKS, RESULTS_FILE, read_starts


@dataclass(frozen=True, eq=False)
class Run:
    """What a run has written so far.

    Attributes:
        folder: where it lies.
        config: as it was resolved at the start.
        records: the metrics of each epoch done.
        before: rank metrics before training, ``after`` and ``reranked`` those of the end; empty where they
            were not measured or are not known (yet).
        starts: where it ran, an entry each time that it was started.
        finished: all its epochs are done.
    """

    folder: Path
    config: Config
    records: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]
    reranked: dict[str, Any]
    starts: list[dict[str, Any]]

    @property
    def finished(self) -> bool:
        return len(self.records) >= self.config.training.epochs

    def last(self, name: str) -> float | None:
        """The latest value of a metric; None where there is none."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT_FILE


def load_run(folder: Path) -> Run:
    """Read the run in ``folder``, finished or not.

    Raises :class:`~snnet.errors.UserError` where there is none, naming the file that is missing or damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: no run there ({CONFIG_FILE} is missing)")
    config = config_from(load_yaml(folder / CONFIG_FILE))
    records = _read_records(folder / METRICS_FILE)
    results = _read_results(folder / RESULTS_FILE)
    return Run(
        folder=folder,
        config=config,
        records=records,
        before=_ranks(results, "before"),
        after=_ranks(results, "after"),
        reranked=_ranks(results, "reranked"),
        starts=read_starts(folder / ENVIRONMENT_FILE),
    )


def _read_records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            record = json.loads(line)
            if record["epoch"] != len(records):
                raise ValueError
            records.append({name: float(value) for name, value in record.items()})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: line {number} is not the metrics of epoch {len(records)}") from error
    return records


def _read_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        results = json.loads(_read(path))
    except ValueError:
        results = None
    if not isinstance(results, dict):
        raise UserError(f"{path} is not the results of a run: it must hold one JSON object")
    return results


def _ranks(results: dict[str, Any], name: str) -> dict[str, Any]:
    found = results.get(name)
    return found if isinstance(found, dict) and set(RANKS) <= found.keys() else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
