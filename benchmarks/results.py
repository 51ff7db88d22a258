"""Results of a run: written by pytest-benchmark, kept slim, read by the report and by the check of floors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .shapes import is_growth

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One contender at one shape; seconds are medians."""

    operation: str
    contender: str
    shape: str
    n: int
    d: int
    seconds: float
    iqr: float = 0.0
    warm_seconds: float | None = None
    yardstick_seconds: float | None = None  # of the operation's yardstick, in turn with this
    cpu_seconds: float | None = None  # of all processors, of one call
    peak_bytes: int | None = None
    held_bytes: int | None = None

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        return self.iqr / self.seconds


@dataclass
class Run:
    """What was measured on one machine, possibly in several files."""

    machine: dict[str, Any]
    files: list[str] = field(default_factory=list)  # each file's name, date and commit, in words
    results: list[Result] = field(default_factory=list)

    def find(self, operation: str, contender: str, shape: str) -> Result | None:
        asked = (operation, contender, shape)
        return next((r for r in self.results if (r.operation, r.contender, r.shape) == asked), None)

    def best(self, operation: str, contenders: Iterable[str], shape: str) -> Result | None:
        """The fastest of ``contenders`` that were measured."""
        found = (self.find(operation, contender, shape) for contender in contenders)
        return min((result for result in found if result), key=lambda result: result.seconds, default=None)


def slim(output: dict[str, Any]) -> None:
    """Keep of pytest-benchmark's JSON what the report reads; nothing about the host but its hardware.

    What was not described failed its gate, after it was timed. Raises ValueError where a clock has failed.
    """
    commit = output.get("commit_info") or {}
    output["commit_info"] = {key: commit[key] for key in ("id", "dirty") if key in commit}
    described = [benchmark for benchmark in output["benchmarks"] if "operation" in benchmark["extra_info"]]
    output["benchmarks"] = []
    for benchmark in described:
        name, stats, info = (benchmark[key] for key in ("name", "stats", "extra_info"))
        if stats["median"] <= 0:
            raise ValueError(f"{name}: a median of {stats['median']:g} s is no time")
        kept = {key: stats[key] for key in ("median", "iqr", "min", "max", "rounds")}
        output["benchmarks"].append({"name": name, "stats": kept, "extra_info": info})


def read_run(paths: Iterable[Path]) -> Run:
    """The results in ``paths``, each the whole of a run on one machine with the same torch and compilers.

    Where several have an operation at one shape (or its growth), all of it is the newest file's: no ratio is of two
    runs. Raises ValueError naming the file that is not the JSON of these benchmarks, or of another torch or compiler.
    """
    whole = Run({})
    seen: set[tuple[str, str]] = set()
    newest: Path | None = None
    for content, path, results in sorted(
        map(_read, paths), key=lambda file: file[0]["datetime"], reverse=True
    ):
        machine = content["machine_info"]
        whole.machine = whole.machine or machine
        for name in ("torch", "libraries"):
            if machine[name] != whole.machine[name]:
                newer = f"in the newer {newest} it is {whole.machine[name]}"
                raise ValueError(f"{path}: {name} is {machine[name]}, {newer}; keep one of them")
        newest = newest or path
        new = [result for result in results if _compared(result) not in seen]
        seen |= {*map(_compared, new)}
        whole.results += new
        whole.files += [_origin(path, content)] if new else []
    return whole


def _origin(path: Path, content: dict[str, Any]) -> str:
    commit = content.get("commit_info") or {}
    changed = " with uncommitted changes" if commit.get("dirty") else ""
    at = f"commit {commit['id'][:12]}{changed}" if "id" in commit else "an unknown commit"
    return f"`{path.name}` on {content['datetime'][:10]}, {at}"


def _read(path: Path) -> tuple[dict[str, Any], Path, list[Result]]:
    try:
        content = json.loads(path.read_text())
        machine = content["machine_info"]
        _ = _origin(path, content), machine["torch"], machine["libraries"]
        return content, path, [_result(benchmark) for benchmark in content["benchmarks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the JSON of pytest benchmarks --benchmark-json: {type(error).__name__} {error}"
        ) from error


def _result(benchmark: dict[str, Any]) -> Result:
    known = {name: value for name, value in benchmark["extra_info"].items() if name in Result.__annotations__}
    return Result(seconds=benchmark["stats"]["median"], iqr=benchmark["stats"]["iqr"], **known)


def _compared(result: Result) -> tuple[str, str]:
    """What belongs to one comparison: an operation at one shape, or all of its growth."""
    return result.operation, "growth" if is_growth(result.shape) else result.shape


def committed_runs() -> dict[str, Run]:
    """The results under benchmarks/results, by machine: CPUs before GPUs."""
    folders = sorted({path.parent for path in FOLDER.glob("*/*.json")})
    runs = {folder.name: read_run(folder.glob("*.json")) for folder in folders}
    return dict(sorted(runs.items(), key=lambda item: (item[1].machine["device"] != "cpu", item[0])))
