"""Which curves a run's metrics give, and what they say in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snnet.reporting.run import Run
from snnet.training.timing import seconds_by_part

FEWEST_POINTS = 2  # of a chart: a single value is in the tables
X_LABEL = "epochs done"
# The backbone takes most of the time, so it gets the quiet colour.
SECONDS_ROLES = {
    "data": "series-1", "backbone": "quiet", "labels+loss": "series-0", "update": "series-2",
    "measuring": "series-3", "other": "ink",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A name, its points (epochs done, value) by rising epoch, and the colour role that it is drawn in."""

    name: str
    points: Sequence[tuple[int, float]]
    role: str


@dataclass(frozen=True)
class Chart:
    """One chart; the series are lines, or with ``stacked`` bars on top of one another."""

    name: str  # of its file and its place on the page
    series: Sequence[Series]
    epochs: tuple[int, int]  # the range of the horizontal axis
    unit: str = ""  # of the values, behind each of them
    digits: int = 1  # after the decimal point of a value
    limits: tuple[float, float] | None = None  # of the vertical axis; None: from 0 to the highest value
    mark: tuple[int, str] | None = None  # epochs done and words of a vertical line
    stacked: bool = False
    each_epoch: bool = True  # it is measured after each one: a line has a gap where an epoch has no value

    def value(self, number: float) -> str:
        """A value with its unit."""
        return f"{number:.{self.digits}f}{' ' if self.unit else ''}{self.unit}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of all values, a row for each number of epochs done; empty where there is no value."""
        values = [dict(series.points) for series in self.series]
        rows = [
            [str(x), *(f"{found[x]:.{self.digits}f}" if x in found else "" for found in values)]
            for x in sorted(set().union(*values))
        ]
        unit = f" ({self.unit})" if self.unit else ""
        return [X_LABEL, *(series.name + unit for series in self.series)], rows

    def description(self) -> str:
        """The course of each series in words, for someone who does not see the chart."""
        parts = []
        for series in self.series:
            first, last = series.points[0], series.points[-1]
            words = f"{series.name}: {self.value(first[1])} after {epochs(first[0])}"
            if last[0] != first[0]:
                values = [value for _, value in series.points]
                words += f", {self.value(last[1])} after {epochs(last[0])}"
                words += f", between {self.value(min(values))} and {self.value(max(values))}"
            parts.append(words)
        return "; ".join(parts) + "."


def epochs(count: int) -> str:
    """A number of epochs in words."""
    return f"{count} epoch{'' if count == 1 else 's'}"


def curves(run: Run) -> dict[str, Chart]:
    """What was measured, as charts by name; those without values are absent."""
    start, whole = run.config.method.label_start_epoch, (0, len(run.records))
    mark = (start, "labels begin") if 0 < start < len(run.records) else None
    quality = {"label_precision": "precision", "label_recall": "recall"}
    agreement = {
        "label_symmetry": "symmetry of P",
        "agreement_symmetric": "agreement with S",
        "agreement_neighbor": "agreement with N",
    }
    ranks = _series(run, {"rank1": "rank-1", "mAP": "mAP"}, 100, run.before)
    curve = [one for one in ranks if len(one.points) > 2]  # before and after training alone are no curve
    percent = 0.0, 100.0
    charts = [
        Chart("loss", _series(run, {"loss": "loss"}), whole, digits=3, mark=mark),
        Chart("retrieval", curve, whole, "%", limits=percent, each_epoch=False),
        Chart("label_quality", _series(run, quality, 100), whole, "%", limits=percent, mark=mark),
        Chart("label_agreement", _series(run, agreement, 100), whole, "%", limits=percent, mark=mark),
        Chart("positives", _series(run, {"positives": "positives"}), whole, mark=mark),
        Chart("seconds", _seconds(run), (1, len(run.records)), "s", stacked=True),
    ]
    return {c.name: c for c in charts if any(len(one.points) >= FEWEST_POINTS for one in c.series)}


def _series(
    run: Run, names: dict[str, str], factor: float = 1.0, before: dict[str, Any] | None = None
) -> list[Series]:
    """Metrics by the names that they are shown under, ``before`` training first; those never measured are absent."""
    records = [(0, before or {}), *enumerate(run.records, start=1)]
    found = []
    for place, (name, shown) in enumerate(names.items()):
        points = [(x, factor * record[name]) for x, record in records if name in record]
        if points:
            found.append(Series(shown, points, f"series-{place}"))
    return found


def _seconds(run: Run) -> list[Series]:
    """The parts of a training step, then what an epoch takes besides; 0 where a part was not measured."""
    parts = [_parts_of_epoch(record) for record in run.records]
    if not any(map(seconds_by_part, run.records)):
        return []
    return [
        Series(name, [(x, part.get(name, 0.0)) for x, part in enumerate(parts, start=1)], role)
        for name, role in SECONDS_ROLES.items()
        if any(name in part for part in parts)
    ]


def _parts_of_epoch(record: dict[str, Any]) -> dict[str, float]:
    parts = seconds_by_part(record)
    if "seconds_measure" in record:
        parts["measuring"] = record["seconds_measure"]
    return {**parts, "other": max(0.0, record["seconds"] - sum(parts.values()))}
