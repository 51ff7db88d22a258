"""What a run leaves to read: ``metrics.jsonl``, TensorBoard events, JSON files, terminal lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from snnet.config.options import Config
from snnet.files.outputs import delete, write_text
from snnet.files.run_files import ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE
from snnet.files.text import parse_json, read_bytes
from snnet.training.event_file import Event, EventFile, scalar_event
from snnet.training.timing import seconds_by_part, total_by_part

_MOST_ENVIRONMENT_BYTES = 2**24
RANKS = ("rank1", "rank5", "rank10", "mAP", "mINP")


def epoch_line(record: dict[str, Any]) -> str:
    """One epoch's metrics as one line."""
    parts = [f"epoch {record['epoch']:>3}", f"loss {record['loss']:.4f}"]
    parts.append(f"positives {record['positives']:.2f}")
    if "agreement_symmetric" in record:
        parts.append(f"agreement S {record['agreement_symmetric']:.3f} N {record['agreement_neighbor']:.3f}")
    if "label_symmetry" in record:
        parts.append(f"symmetry {record['label_symmetry']:.3f}")
    labels = [
        f"{key} {record['label_' + key]:.3f}" for key in ("precision", "recall") if "label_" + key in record
    ]
    if labels:
        parts.append("labels " + " ".join(labels))
    if record.get("products", 0) >= 1:
        parts.append(f"{record['products']:.0f} rows multiplied a step (fewer with more --neighbors)")
    if "mAP" in record:
        parts.append(f"rank-1 {100 * record['rank1']:.1f} mAP {100 * record['mAP']:.1f}")
    spent = [f"{part} {seconds:.1f}" for part, seconds in seconds_by_part(record).items()]
    return " | ".join([*parts, f"{record['seconds']:.1f} s ({', '.join(spent)})"])


def time_line(seconds: dict[str, float]) -> str:
    """Where the training steps' time went, in percent: ``seconds`` by part, of the whole run."""
    total = sum(seconds.values())
    shares = [f"{part} {100 * value / total:.1f} %" for part, value in seconds.items()]
    return f"time of the training steps: {', '.join(shares)}"


def run_results(config: Config, before: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``results.json`` says of a run whose epochs are all done; ``before`` is empty where nothing was ranked."""
    last = records[-1]
    results: dict[str, Any] = {
        "dataset": config.data.dataset,
        "arch": config.model.arch,
        "epochs": len(records),
        "seed": config.runtime.seed,
        "loss": last["loss"],
        "seconds": sum(record["seconds"] for record in records),
        "seconds_by_part": total_by_part(records),
    }
    if before:
        results |= {"before": before, "after": before | {name: last[name] for name in RANKS}}
    if "reranked_mAP" in last:
        results["reranked"] = before | {name: last[f"reranked_{name}"] for name in RANKS}
    return results


def read_starts(path: Path) -> list[dict[str, Any]]:
    """What :meth:`RunLog.write_start` wrote for each start of a run; empty where there is no such file."""
    try:
        starts = parse_json(read_bytes(path, most_bytes=_MOST_ENVIRONMENT_BYTES))
        return [start for start in starts if type(start["first_epoch"]) is int]
    except (OSError, ValueError, TypeError, KeyError):  # it is for reading only: no run fails of it
        return []


class RunLog:
    """The metrics of a run's epochs on disk; files are replaced as a whole, so none is ever half-written.

    Args:
        folder: the folder of the run.
        records: one dict for each epoch done, to which the trainer appends.

    At the start, epochs in the files that ``records`` does not have are dropped: a killed run may have written epochs
    that its checkpoint does not know. ``results.json`` is deleted: it may be another run's, and this run writes its own
    at its end.
    """

    def __init__(self, folder: Path, records: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.records = records
        delete(folder / RESULTS_FILE)
        self._write_metrics()
        self._events = EventFile(folder / "tensorboard", _events(records))

    def write_start(self, environment: dict[str, Any]) -> None:
        """Publish where the epochs from here on are trained; a resumed run has had other starts."""
        path = self.folder / ENVIRONMENT_FILE
        starts = read_starts(path)
        first = len(self.records)
        starts = [start for start in starts if start["first_epoch"] < first]
        starts.append({"first_epoch": first, **environment})
        write_text(path, json.dumps(starts, indent=2) + "\n")

    def write_epoch(self) -> None:
        """Publish the last of ``records``."""
        self._write_metrics()
        self._events.add(*_events(self.records[-1:]))

    def write_results(self, results: dict[str, Any]) -> None:
        """Publish the outcome of the run and close the log."""
        write_text(self.folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        self.close()

    def close(self) -> None:
        self._events.close()

    def _write_metrics(self) -> None:
        lines = [json.dumps(record) + "\n" for record in self.records]
        write_text(self.folder / METRICS_FILE, "".join(lines))


def _events(records: list[dict[str, Any]]) -> list[Event]:
    """The epochs as TensorBoard's events, with the times of epochs that end now and had no break between them."""
    end, events = time.time(), []
    for record in reversed(records):
        scalars = {_tag(name): value for name, value in record.items() if name != "epoch"}
        events.append(scalar_event(record["epoch"], scalars, end))
        end -= record.get("seconds", 0.0)
    return events[::-1]


def _tag(name: str) -> str:
    """TensorBoard shows the names before the slash as sections."""
    section = {"label": "labels", "agreement": "labels", "positives": "labels", "seconds": "time"}
    if name in RANKS:
        return f"retrieval/{name}"
    return f"{section.get(name.split('_')[0], 'training')}/{name}"
