"""Results of a run: written by pytest-benchmark, kept slim, read by the report and by the check of floors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
_STATS = ("median", "iqr", "min", "max", "rounds")


@dataclass(frozen=True)
class Result:
    """One contender at one shape; seconds are medians."""

    operation: str
    contender: str
    shape: str
    n: int
    d: int
    batch: int
    device: str
    seconds: float
    iqr: float = 0.0
    rounds: int = 0
    precision: str = "ieee"
    scaled: float = 1.0  # more than 1: run on a part of the batch, the time multiplied by this
    warm_seconds: float | None = None
    host_seconds: float | None = None
    floor_seconds: float | None = None
    product_seconds: float | None = None  # of its matrix products at the measured rate of the same precision
    cpu_seconds: float | None = None  # of all processors, of one call
    peak_bytes: int | None = None
    held_bytes: int | None = None
    flipped_rows: int | None = None


@dataclass
class Run:
    """What was measured on one machine, possibly in several files."""

    machine: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)
    dates: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def find(self, operation: str, contender: str, shape: str) -> Result | None:
        asked = (operation, contender, shape)
        return next((r for r in self.results if (r.operation, r.contender, r.shape) == asked), None)

    def best(self, operation: str, contenders: Iterable[str], shape: str) -> Result | None:
        """The fastest of ``contenders`` that were measured."""
        found = (self.find(operation, contender, shape) for contender in contenders)
        return min((result for result in found if result), key=lambda result: result.seconds, default=None)


def slim(output: dict[str, Any], rates: dict[str, float]) -> None:
    """Keep of pytest-benchmark's JSON what the report reads; nothing about the host but its hardware.

    What was not described failed its gate, after its one call was timed. Times of a part of the batch are scaled here.
    """

    def scaled(benchmark: dict[str, Any]) -> dict[str, Any]:
        factor = benchmark["extra_info"].get("scaled", 1.0)
        stats = {key: benchmark["stats"][key] for key in _STATS}
        return {key: value if key == "rounds" else factor * value for key, value in stats.items()}

    output["rates"] = rates
    commit = output.get("commit_info") or {}
    output["commit_info"] = {key: commit[key] for key in ("id", "dirty") if key in commit}
    output["benchmarks"] = [
        {"name": benchmark["name"], "stats": scaled(benchmark), "extra_info": benchmark["extra_info"]}
        for benchmark in output["benchmarks"]
        if "operation" in benchmark["extra_info"]
    ]


def read_run(paths: Iterable[Path]) -> Run:
    """The results in ``paths``, written on one machine; where two have the same case, the later file's stand.

    Raises ValueError naming the file where it is not the JSON of these benchmarks.
    """
    whole = Run({})
    found: dict[tuple[str, str, str], Result] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text())
            results = [_result(benchmark) for benchmark in content["benchmarks"]]
            whole.machine = whole.machine or content["machine_info"]
            whole.rates |= content.get("rates", {})
            whole.dates.append(content["datetime"][:10])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not the JSON of pytest benchmarks --benchmark-json: {type(error).__name__} {error}"
            ) from error
        found |= {(result.operation, result.contender, result.shape): result for result in results}
    whole.results = list(found.values())
    return whole


def _result(benchmark: dict[str, Any]) -> Result:
    known = {name: value for name, value in benchmark["extra_info"].items() if name in Result.__annotations__}
    stats = benchmark["stats"]
    return Result(seconds=stats["median"], iqr=stats["iqr"], rounds=stats["rounds"], **known)


def committed_runs() -> dict[str, Run]:
    """The results under benchmarks/results, by machine: CPUs before GPUs."""
    folders = sorted({path.parent for path in FOLDER.glob("*/*.json")})
    runs = {folder.name: read_run(sorted(folder.glob("*.json"))) for folder in folders}
    return dict(sorted(runs.items(), key=lambda item: (item[1].machine["device"] != "cpu", item[0])))
