"""The files of a run, read back and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnet.config.options import Config, config_from
from snnet.config.resolve import load_yaml
from snnet.errors import UserError
from snnet.files.run_files import CHECKPOINT_FILE, CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE
from snnet.files.text import FileFault, parse_json, quoted, read_bytes
from snnet.training.metric_checks import check_record, checked_ranks
from snnet.training.runlog import read_starts

_MOST_METRICS_BYTES, _MOST_RESULTS_BYTES = 2**28, 2**20


@dataclass(frozen=True, eq=False)
class Run:
    """What a run has written so far; rank metrics that were not measured or are not known (yet) are empty."""

    folder: Path
    config: Config  # as it was resolved at the start
    records: list[dict[str, float]]  # the metrics of each epoch done, all of them finite
    before: dict[str, Any]  # rank metrics before training
    reranked: dict[str, Any]  # at the end, after re-ranking
    starts: list[dict[str, Any]]  # where it ran, an entry each time that it was started
    notes: list[str]  # sentences about what the files hold and cannot be shown

    @property
    def finished(self) -> bool:
        return len(self.records) >= self.config.training.epochs

    def latest(self, *names: str) -> dict[str, float]:
        """The metrics of the last epoch that has all of these; empty where there is none."""
        return next((record for record in reversed(self.records) if record.keys() >= set(names)), {})

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
    records, notes = _read_records(folder / METRICS_FILE)
    path = folder / RESULTS_FILE
    # Results beside an unfinished run are left over from an earlier run in this folder.
    results = _read_results(path) if len(records) >= config.training.epochs else {}
    before, reranked = (ranks_of(results.get(name), f"{path}: {name}") for name in ("before", "reranked"))
    starts = read_starts(folder / ENVIRONMENT_FILE)
    return Run(folder, config, records, before, reranked, starts, notes)


def ranks_of(found: Any, source: str) -> dict[str, Any]:
    """:func:`checked_ranks`; an error names ``source``."""
    try:
        return checked_ranks(found)
    except ValueError as error:
        raise UserError(f"{source} is not rank metrics: {error}") from error


def _read_records(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    records: list[dict[str, float]] = []
    notes = []
    for number, line in enumerate((_read(path, _MOST_METRICS_BYTES) or b"").splitlines(), start=1):
        epoch = len(records)
        try:
            record = _object(line)
            lost = check_record(record, epoch)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not the metrics of epoch {epoch}: {error}") from error
        records.append({name: value for name, value in record.items() if name not in lost})
        if lost:
            notes.append(f"Left out, since they are not finite: {', '.join(lost)} of epoch {epoch}.")
    return records, notes


def _read_results(path: Path) -> dict[str, Any]:
    content = _read(path, _MOST_RESULTS_BYTES)
    try:
        return {} if content is None else _object(content)
    except ValueError as error:
        raise UserError(
            f"{path} is not the results of a run: it must hold one JSON object, but {error}"
        ) from error


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = parse_json(content.decode("utf-8", "surrogateescape"))
    except FileFault as error:
        raise ValueError(f"it {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {quoted(value)}, not an object")
    return value


def _read(path: Path, most_bytes: int) -> bytes | None:
    """The content of a file; None where there is none."""
    try:
        return read_bytes(path, most_bytes=most_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except FileFault as error:
        raise UserError(f"{path} {error}") from error
