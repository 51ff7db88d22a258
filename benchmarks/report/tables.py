"""Tables of a run, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..floors import WITH_BASELINE, read_floors, verdicts
from ..growth import curves
from ..results import Result, Run
from ..shapes import SIZES, is_growth
from . import words

DIMS = ("d2048", "d512")  # the columns of the short table
INSTRUCTIONS = Path(__file__).parent.parent / "instructions.json"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def ratio(value: float) -> str:
    """Three digits at the most, for a person to read."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def microseconds(seconds: float) -> str:
    value = 1e6 * seconds
    return f"{value:,.0f} µs" if value < 1e5 else f"{value / 1e3:,.0f} ms"


def megabytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.1f}" if count < 99.5e5 else f"{count / 1e6:,.0f}"


def stated(run: Run) -> str:
    """Every stated ratio with its floor and what this run measured."""
    device = run.machine["device"]
    rows = []
    for floor in read_floors():
        found = [verdict for verdict in verdicts(floor, run) if verdict.measured is not None]
        if floor.device != device or not found:
            continue
        for verdict in found:
            against = f", against {words.contender(verdict.baseline)}" if verdict.baseline else ""
            rows.append(
                (
                    floor.work,
                    verdict.shape + against,
                    f"{floor.sign} {verdict.limit:g}",
                    f"{'' if verdict.holds else '✗ '}{ratio(verdict.measured)}",
                )
            )
    return table(("work", "at", "floor", "measured"), rows)


def predicted() -> str:
    """The floors of a GPU beside what was counted for them, measured or not."""
    rows = []
    for floor in read_floors():
        for shape, value in floor.predicted.items():
            amount = f"{value:g} MB" if floor.bound == "megabytes" else microseconds(value / 1e6)
            rows.append((floor.work, shape, f"{floor.sign} {floor.limits[shape]:g}", amount, floor.counted))
    return table(("work", "at", "floor", "predicted", "counted from"), rows)


def head(run: Run) -> str:
    """The stated ratios in short, for the README: a table over d, and a sentence for each of the others."""
    floors = [floor for floor in read_floors() if floor.device == run.machine["device"]]
    rows, sentences = [], []
    for floor in floors:
        found = {verdict.shape: verdict.measured for verdict in verdicts(floor, run) if verdict.measured}
        by_dims = [next((v for shape, v in found.items() if f"-{d}-b" in shape), None) for d in DIMS]
        in_table = floor.bound == "at_least" and all("market-d" in shape for shape in floor.limits)
        if in_table and found:
            rows.append((floor.work, *(f"{ratio(value)} ×" if value else "" for value in by_dims)))
        elif found and floor.bound in WITH_BASELINE:
            values = ", ".join(f"{ratio(value)} × ({_short(shape)})" for shape, value in found.items())
            sentences.append(f"- {floor.work}: {values}")
    parts = [table(("time of … over ours", *(d.replace("d", "d ") for d in DIMS)), rows)]
    return "\n\n".join([*parts, "\n".join(sentences)] if sentences else parts)


def _short(shape: str) -> str:
    """d where the size is Market-1501's, n and d of another."""
    size, *rest = shape.split("-")
    d = next((word for word in rest if word in DIMS), None)
    if d is None:
        return shape
    return d.replace("d", "d ") if size not in SIZES or size == "market" else f"n {SIZES[size]:,}, d {d[1:]}"


def operation(run: Run, name: str) -> str:
    """All contenders of an operation: time over ours, on a GPU the time too; the hardware floor in its row.

    Empty where only growth was measured.
    """
    shapes = [shape for shape in run.shapes(name) if not is_growth(shape)]
    if not shapes:
        return ""
    gpu = run.machine["device"] == "cuda"
    reference = {shape: run.find(name, "snnet", shape) for shape in shapes}
    rows = []
    for contender in run.contenders(name):
        results = {shape: run.find(name, contender, shape) for shape in shapes}
        if not any(results.values()):
            continue
        first = next(result for result in results.values() if result)
        rows.append(
            [
                words.contender(contender) + (f" ({first.scaled:.0f} × a part)" if first.scaled > 1 else ""),
                *(_cell(results[shape], reference[shape], gpu) for shape in shapes),
                megabytes(first.peak_bytes),
                megabytes(first.held_bytes),
            ]
        )
    floors = [_floor_cell(reference[shape], gpu) for shape in shapes]
    if any(floors):
        rows.append(["hardware floor", *floors, "", ""])
    return table(("form", *shapes, "peak MB", "kept MB"), rows)


def _cell(result: Result | None, ours: Result | None, gpu: bool) -> str:
    """Cold, and warm in brackets."""
    if result is None:
        return ""

    def show(seconds: float, base: float | None) -> str:
        words = [microseconds(seconds)] if gpu else []
        words += [f"{ratio(seconds / base)} ×"] if base else []
        return ", ".join(words)

    cold = show(result.seconds, ours.seconds if ours else None)
    if result.warm_seconds is None:
        return cold
    return f"{cold} ({show(result.warm_seconds, ours.warm_seconds if ours else None)})"


def _floor_cell(ours: Result | None, gpu: bool) -> str:
    if ours is None or ours.floor_seconds is None:
        return ""
    share = f"{ratio(ours.floor_seconds / ours.seconds)} ×"
    return f"{microseconds(ours.floor_seconds)}, {share}" if gpu else share


def growth(run: Run) -> str:
    """Time over n of the label step, over ours at the smallest n; exponents, share of linear growth, and bend."""
    found = curves(run)
    sizes = sorted({point.n for curve in found for point in curve.points})
    ours = next((curve for curve in found if curve.contender == "snnet"), None)
    if ours is None or len(sizes) < 2:
        return ""
    unit = ours.points[0].seconds
    rows = []
    for curve in found:
        by_n = {point.n: point.seconds / unit for point in curve.points}
        linearity = curve.linearity(12_936)
        rows.append(
            [
                words.contender(curve.contender),
                *(ratio(by_n[n]) if n in by_n else "" for n in sizes),
                "" if curve.exponent is None else f"{curve.exponent:.2f}",
                "" if linearity is None else f"{linearity:.2f}",
                "" if curve.bend is None else f"{curve.bend:.2f}",
            ]
        )
    header = ("form", *(f"n {n:,}" for n in sizes), "exponent", "of linear", "bend")
    return table(header, rows)


def instructions() -> str:
    """The committed instruction counts, if there are any."""
    if not INSTRUCTIONS.exists():
        return ""
    content = json.loads(INSTRUCTIONS.read_text())
    sets = list(content["counts"])
    rows = [
        [name, *(f"{content['counts'][isa].get(name, 0):,}" for isa in sets)]
        for name in content["counts"][sets[0]]
    ]
    return table(("operation", *sets), rows)
