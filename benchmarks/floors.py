"""The stated ratios of ``floors.yaml``, and what a run makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from .results import Result, Run
from .shapes import GROWTH_BASE

FILE = Path(__file__).parent / "floors.yaml"
BOUNDS = {
    "at_least": "baseline over ours",
    "at_most": "ours over baseline",
    "cpu_at_least": "processor time of the baseline over that of ours",
    "peak_at_most": "peak memory of ours over that of the baseline",
    "growth": f"time of ours an image over that at {GROWTH_BASE}, at most",
    "microseconds": "time of ours in microseconds, at most",
    "megabytes": "peak memory of ours in 10^6 bytes beside what was there before, at most",
    "kept_megabytes": "what ours keeps beside M and its peak, in 10^6 bytes, at most",
    "share_of_matmul": "share of the measured matmul rate of the same precision, at least",
}
WITH_BASELINE = ("at_least", "at_most", "cpu_at_least", "peak_at_most")
LEAST = ("at_least", "cpu_at_least", "share_of_matmul")  # the others are limits from above


@dataclass(frozen=True)
class Floor:
    """One line of the file: a ratio that is to hold at some shapes.

    ``bound`` is a key of BOUNDS, ``limits`` maps names of shapes to the number. The baseline is the fastest of
    ``baselines`` that were measured.
    """

    work: str
    operation: str
    bound: str
    limits: dict[str, float]
    ours: str = "snnet"
    baselines: tuple[str, ...] = ()
    device: str = "cpu"
    predicted: dict[str, float] = field(default_factory=dict)  # µs of ours by shape, or MB; not measured
    counted: str = ""  # from what
    optional: bool = False  # takes so long that only a run that was asked for it has it

    @property
    def sign(self) -> str:
        """On which side of the limit a measure may lie."""
        return "≥" if self.bound in LEAST else "≤"

    @property
    def shapes(self) -> list[str]:
        """Where something has to be measured."""
        return [*self.limits, *([GROWTH_BASE] if self.bound == "growth" else [])]

    @property
    def quick_contenders(self) -> tuple[str, ...]:
        """Who has to run for a check; torch.compile takes too long for that. On a GPU both kinds of our kernels."""
        both = ("snnet-cuda", "snnet-triton") if self.device == "cuda" and self.ours == "snnet" else ()
        return (self.ours, *both, *(name for name in self.baselines if not name.startswith("compile")))


@dataclass(frozen=True)
class Verdict:
    """A floor at one shape: what was measured, None where it was not, and by which baseline."""

    floor: Floor
    shape: str
    limit: float
    measured: float | None
    baseline: str = field(default="")

    @property
    def holds(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.floor.sign == "≥" else self.measured <= self.limit


def read_floors(path: Path = FILE) -> list[Floor]:
    """The lines of ``path``. Raises ValueError naming the line where one cannot be understood."""
    floors = []
    for number, entry in enumerate(yaml.safe_load(path.read_text()), start=1):
        bounds = [name for name in BOUNDS if name in entry]
        known = {field.name for field in fields(Floor)} - {"bound", "limits"} | {*bounds}
        if len(bounds) != 1 or not {"work", "operation"} <= set(entry) <= known:
            raise ValueError(
                f"{path.name}, entry {number}: needed are work, operation and one of {', '.join(BOUNDS)}; "
                f"got {', '.join(entry)}"
            )
        (bound,) = bounds
        rest = {key: value for key, value in entry.items() if key != bound}
        rest["baselines"] = tuple(rest.get("baselines", ()))
        if (bound in WITH_BASELINE) != bool(rest["baselines"]):
            raise ValueError(f"{path.name}, entry {number}: {bound} and baselines do not go together")
        if set(entry.get("predicted", {})) - set(entry[bound]) or ("predicted" in entry) != (
            "counted" in entry
        ):
            raise ValueError(
                f"{path.name}, entry {number}: predicted is of shapes that have a floor, and counted says how"
            )
        floors.append(Floor(bound=bound, limits=dict(entry[bound]), **rest))
    return floors


def verdicts(floor: Floor, run: Run) -> Iterator[Verdict]:
    """What ``run`` has to say about ``floor`` at each of its shapes."""
    for shape, limit in floor.limits.items():
        ours = run.find(floor.operation, floor.ours, shape)
        best = run.best(floor.operation, floor.baselines, shape)
        if floor.bound == "growth":
            best = run.find(floor.operation, floor.ours, GROWTH_BASE)
        measured = None if ours is None else _measured(floor.bound, ours, best)
        yield Verdict(floor, shape, limit, measured, best.contender if best and floor.baselines else "")


def _measured(bound: str, ours: Result, base: Result | None) -> float | None:
    if bound == "microseconds":
        return 1e6 * ours.seconds
    if bound == "megabytes":
        return None if ours.peak_bytes is None else ours.peak_bytes / 1e6
    if bound == "kept_megabytes":
        return None if ours.peak_bytes is None else ((ours.held_bytes or 0) + ours.peak_bytes) / 1e6
    if bound == "share_of_matmul":
        return ours.product_seconds / ours.seconds if ours.product_seconds else None
    if base is None:
        return None
    if bound == "growth":
        return (ours.seconds / ours.n) / (base.seconds / base.n)
    if bound == "cpu_at_least":
        return base.cpu_seconds / ours.cpu_seconds if base.cpu_seconds and ours.cpu_seconds else None
    if bound == "peak_at_most":
        return ours.peak_bytes / base.peak_bytes if base.peak_bytes and ours.peak_bytes is not None else None
    return base.seconds / ours.seconds if bound == "at_least" else ours.seconds / base.seconds
