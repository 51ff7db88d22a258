"""The stated ratios of ``floors.yaml``, and what a run makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .results import Run
from .shapes import GROWTH_BASE

NOISY = 0.3  # a figure is marked where the times behind it have a larger spread
FILE = Path(__file__).parent / "floors.yaml"


class Bound(NamedTuple):
    """A kind of floor.

    How its figure follows from our result (and a baseline's), and whether it must lie above or below the limit.
    """

    sign: str
    meaning: str
    measure: Callable[[Any, Any], float | None]  # of the result of ours, and of the other one
    beside: str = ""  # "baseline"; "ours": at GROWTH_BASE; "": nothing
    timed: bool = True  # by the clock, the calls of which have a spread


def _over(value: float | None, other: float | None) -> float | None:
    """The ratio, or None where one of them was not measured."""
    return value / other if value is not None and other else None


BOUNDS = {
    "at_least": Bound("≥", "baseline over ours", lambda ours, b: b.seconds / ours.seconds, "baseline"),
    "at_most": Bound(
        "≤",
        "ours over baseline",
        lambda ours, b: ours.seconds / (ours.yardstick_seconds or b.seconds),
        "baseline",
    ),
    "cpu_at_least": Bound(
        "≥",
        "processor time of the baseline over that of ours",
        lambda ours, b: _over(b.cpu_seconds, ours.cpu_seconds),
        "baseline",
        timed=False,
    ),
    "peak_at_most": Bound(
        "≤",
        "peak memory of ours over that of the baseline",
        lambda ours, b: _over(ours.peak_bytes, b.peak_bytes),
        "baseline",
        timed=False,
    ),
    "growth": Bound(
        "≤",
        f"time of ours an image over that at {GROWTH_BASE}",
        lambda ours, base: (ours.seconds / ours.n) / (base.seconds / base.n),
        "ours",
    ),
    "microseconds": Bound("≤", "time of ours in microseconds", lambda ours, _: 1e6 * ours.seconds),
    "megabytes": Bound(
        "≤",
        "peak memory of ours in 10^6 bytes beside what was there before",
        lambda ours, _: _over(ours.peak_bytes, 1e6),
        timed=False,
    ),
    "kept_megabytes": Bound(
        "≤",
        "what ours keeps beside M and its peak, in 10^6 bytes",
        lambda ours, _: None if ours.peak_bytes is None else ((ours.held_bytes or 0) + ours.peak_bytes) / 1e6,
        timed=False,
    ),
}


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
    baselines: Sequence[str] = ()
    device: str = "cpu"
    predicted: dict[str, float] = field(default_factory=dict)  # µs of ours by shape, or MB; not measured
    counted: str = ""  # from what
    optional: bool = False  # takes very long: judged only where it was measured

    @property
    def sign(self) -> str:
        return BOUNDS[self.bound].sign

    @property
    def shapes(self) -> list[str]:
        """Where something has to be measured."""
        return [*self.limits, *([GROWTH_BASE] if self.bound == "growth" else [])]

    @property
    def entries(self) -> list[tuple[str, str, str]]:
        """What a check measures, as (operation, shape, contender): on a GPU no torch.compile, which takes minutes."""
        names = [self.ours, *self.baselines]
        if self.device == "cuda":
            names = [name for name in names if not name.startswith("compile")]
        return [(self.operation, shape, name) for shape in self.shapes for name in names]


class Verdict(NamedTuple):
    """A floor at one shape: what was measured, None where it was not, and by which baseline."""

    floor: Floor
    shape: str
    limit: float
    measured: float | None
    baseline: str = ""
    spread: float = 0.0  # the larger one of the two times behind it
    left_out: tuple[str, ...] = ()  # baselines that were not measured: one of them may be faster

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY

    @property
    def holds(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.floor.sign == "≥" else self.measured <= self.limit


def read_floors(device: str, path: Path = FILE) -> list[Floor]:
    """The entries of ``path`` for this device. Raises ValueError naming the one that cannot be understood."""
    entries = enumerate(yaml.safe_load(path.read_text()), start=1)
    floors = [_floor(f"{path.name}, entry {number}", entry) for number, entry in entries]
    return [floor for floor in floors if floor.device == device]


def _floor(where: str, entry: dict[str, Any]) -> Floor:
    given = ", ".join(entry)
    try:
        (bound,) = (name for name in BOUNDS if name in entry)
        floor = Floor(bound=bound, limits=entry.pop(bound), **entry)
    except (TypeError, ValueError):
        needed = f"work, operation and one of {', '.join(BOUNDS)}"
        raise ValueError(f"{where}: needed are {needed}; got {given}") from None
    if (BOUNDS[bound].beside == "baseline") != bool(floor.baselines):
        raise ValueError(f"{where}: {bound} and baselines do not go together")
    if set(floor.predicted) - set(floor.limits) or bool(floor.predicted) != bool(floor.counted):
        raise ValueError(f"{where}: predicted is of shapes that have a floor, and counted says how")
    return floor


def verdicts(floor: Floor, run: Run) -> Iterator[Verdict]:
    """What ``run`` has to say about ``floor`` at each of its shapes."""
    bound = BOUNDS[floor.bound]
    for shape, limit in floor.limits.items():
        ours = run.find(floor.operation, floor.ours, shape)
        best = run.best(floor.operation, floor.baselines, shape)
        other = run.find(floor.operation, floor.ours, GROWTH_BASE) if bound.beside == "ours" else best
        known = ours is not None and (other is not None or not bound.beside)
        measured = bound.measure(ours, other) if known else None
        timed = [result.spread for result in (ours, other) if result and bound.timed]
        left_out = tuple(name for name in floor.baselines if run.find(floor.operation, name, shape) is None)
        name = best.contender if best else ""
        yield Verdict(floor, shape, limit, measured, name, max(timed, default=0.0), left_out)
