"""The charts that a run's metrics give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from snnet.reporting.chart import Chart, Series
from snnet.reporting.run import Run
from snnet.timing import seconds_by_part

FEWEST_POINTS = 2  # of a chart: a single value is in the tables
PERCENT = (0.0, 100.0)
# The backbone, which is most of it, stays in the background.
SECONDS_ROLES = {
    "data": "series-1", "backbone": "quiet", "labels+loss": "series-0", "update": "series-2",
    "measuring": "series-3", "other": "axis",
}  # fmt: skip


def curves(run: Run) -> list[Chart]:
    """What was measured, as charts; those without values are absent."""
    start = run.config.method.label_start_epoch
    whole = 0, len(run.records)
    begins = (start, "labels begin") if 0 < start < len(run.records) else None
    charts = [
        Chart(
            "loss",
            "training",
            "Training loss",
            "",
            "Mean over an epoch. It may rise where predicted labels begin: more images count as positive then.",
            _series(run, {"loss": "loss"}),
            whole,
            digits=3,
            mark=begins,
        ),
        Chart(
            "retrieval",
            "training",
            "Retrieval quality",
            "%",
            "Ranking of the gallery for every query. Training never sees these identities.",
            _retrieval(run),
            whole,
            limits=PERCENT,
        ),
        Chart(
            "label_quality",
            "labels",
            "Are the pseudo labels right?",
            "%",
            "Pairs of different training images in the label memory, against identities that training never sees. "
            "Precision: the share of the labelled pairs that are right; recall: of the right pairs, those labelled.",
            _series(run, {"label_precision": "precision", "label_recall": "recall"}, 100),
            whole,
            limits=PERCENT,
            mark=begins,
        ),
        Chart(
            "label_agreement",
            "labels",
            "Do the pseudo labels agree?",
            "%",
            "Symmetry: of the pairs with P[i, j] set, those with P[j, i] set. Agreement: intersection over union of "
            "a batch's main labels with its symmetric (S) and its nearest neighbour's labels (N).",
            _series(
                run,
                {
                    "label_symmetry": "symmetry of P",
                    "agreement_symmetric": "agreement with S",
                    "agreement_neighbor": "agreement with N",
                },
                100,
            ),
            whole,
            limits=PERCENT,
            mark=begins,
        ),
        Chart(
            "positives",
            "labels",
            "Positives of an image",
            "",
            "Mean number of images that the main label counts as the same person, the image itself among them.",
            _series(run, {"positives": "positives"}),
            whole,
            mark=begins,
        ),
        Chart(
            "seconds",
            "time",
            "Where the time goes",
            "s",
            "Seconds of each epoch. Measuring: quality of the labels, and ranks where they were due.",
            (seconds := _seconds(run)),
            (1, len(run.records)),
            stacked=True,
            roles=[SECONDS_ROLES[one.name] for one in seconds],
        ),
    ]
    return [chart for chart in charts if any(len(one.points) >= FEWEST_POINTS for one in chart.series)]


def _series(run: Run, names: dict[str, str], factor: float = 1.0) -> list[Series]:
    """Metrics by the names that they are shown under; what was never measured is absent."""

    def read(name: str) -> Callable[[dict[str, Any]], float | None]:
        return lambda record: factor * record[name] if name in record else None

    return [one for name, shown in names.items() if (one := _one(run, shown, read(name))).points]


def _one(run: Run, name: str, read: Callable[[dict[str, Any]], float | None]) -> Series:
    points = [(int(record["epoch"]) + 1, read(record)) for record in run.records]
    return Series(name, [(x, y) for x, y in points if y is not None and math.isfinite(y)])


def _retrieval(run: Run) -> list[Series]:
    """From before training on; nothing where only its ends were measured, which are no curve."""
    found = _series(run, {"rank1": "rank-1", "mAP": "mAP"}, 100)
    if run.before:
        values = {"rank-1": 100 * run.before["rank1"], "mAP": 100 * run.before["mAP"]}
        found = [Series(one.name, [(0, values[one.name]), *one.points]) for one in found]
    return [one for one in found if len(one.points) > 2]


def _seconds(run: Run) -> list[Series]:
    """The parts of a training step, then what an epoch takes besides; 0 where a part was not measured."""
    parts = list(dict.fromkeys(part for record in run.records for part in seconds_by_part(record)))
    if not parts:
        return []

    def other(record: dict[str, Any]) -> float:
        measured = sum(seconds_by_part(record).values()) + record.get("seconds_measure", 0.0)
        return max(0.0, record["seconds"] - measured)

    series = [
        _one(run, part, lambda record, part=part: seconds_by_part(record).get(part, 0.0))  # type: ignore[misc]
        for part in parts
    ]
    if any("seconds_measure" in record for record in run.records):
        series.append(_one(run, "measuring", lambda record: record.get("seconds_measure", 0.0)))
    series.append(_one(run, "other", other))
    return series
