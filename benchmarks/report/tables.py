"""Tables of a run, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..floors import BOUNDS, Verdict, read_floors, verdicts
from ..results import Result, Run
from ..shapes import SIZES, is_growth
from . import words
from .growth import curves

DIMS = ("d2048", "d512")  # the columns of the short table
INSTRUCTIONS = Path(__file__).parent.parent / "instructions.json"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def ratio(value: float) -> str:
    """Three digits at the most, for a person to read."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def shown(verdict: Verdict, sign: str = "") -> str:
    """The figure, with ± where the times behind it vary much."""
    return f"{ratio(verdict.measured or 0.0)}{sign}{' ±' if verdict.noisy else ''}"


def microseconds(seconds: float) -> str:
    value = 1e6 * seconds
    return f"{value:,.0f} µs" if value < 1e5 else f"{value / 1e3:,.0f} ms"


def megabytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.1f}" if count < 99.5e5 else f"{count / 1e6:,.0f}"


def hundredths(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def libraries(machine: dict[str, Any]) -> str:
    return "; ".join(f"`{name}`: {detail}" for name, detail in machine["libraries"].items())


def rates(run: Run) -> str:
    return ", ".join(
        f"copy {rate / 1e9:,.0f} GB/s" if name == "copy" else f"{name} products {rate / 1e12:.2f} TFLOP/s"
        for name, rate in run.rates.items()
    )


def stated(run: Run) -> str:
    """Every stated ratio with its floor and what this run measured."""
    floors = [floor for floor in read_floors() if floor.device == run.machine["device"]]
    rows = [
        (
            floor.work,
            v.shape + _against(v),
            f"{floor.sign} {v.limit:g}",
            "not measured" if v.measured is None else f"{'' if v.holds else '✗ '}{shown(v)}",
        )
        for floor in floors
        for v in verdicts(floor, run)
    ]
    return table(("work", "at", "floor", "measured"), rows)


def _against(verdict: Verdict) -> str:
    if not verdict.baseline:
        return ""
    others = "".join(f", {words.contender(name)} not measured" for name in verdict.left_out)
    return f", against {words.contender(verdict.baseline)}{others}"


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
    rows, sentences = [], []
    for floor in read_floors():
        found = {verdict.shape: shown(verdict, " ×") for verdict in verdicts(floor, run) if verdict.measured}
        if not found or floor.device != run.machine["device"]:
            continue
        if floor.bound == "at_least" and all("market-d" in shape for shape in floor.limits):
            by_dims = [next((v for shape, v in found.items() if f"-{d}-b" in shape), "") for d in DIMS]
            rows.append((floor.work, *by_dims))
        elif BOUNDS[floor.bound].beside == "baseline":
            values = ", ".join(f"{value} ({_short(shape)})" for shape, value in found.items())
            sentences.append(f"- {floor.work}: {values}")
    short = table(("time of … over ours", *(d.replace("d", "d ") for d in DIMS)), rows)
    return "\n\n".join([short, "\n".join(sentences)] if sentences else [short])


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
    found = {
        (result.contender, result.shape): result
        for result in run.results
        if result.operation == name and not is_growth(result.shape)
    }
    if not found:
        return ""
    shapes = list(dict.fromkeys(shape for _, shape in found))
    gpu = run.machine["device"] == "cuda"
    ours = {shape: found.get(("snnet", shape)) for shape in shapes}
    rows = []
    for contender in dict.fromkeys(contender for contender, _ in found):
        results = [found.get((contender, shape)) for shape in shapes]
        first = next(result for result in results if result)
        part = f" ({first.scaled:.0f} × a part)" if first.scaled > 1 else ""
        cells = [_cell(result, base, gpu) for result, base in zip(results, ours.values(), strict=True)]
        memory = megabytes(first.peak_bytes), megabytes(first.held_bytes)
        rows.append([words.contender(contender) + part, *cells, *memory])
    floors = [_show(base.floor_seconds, base.seconds, gpu) if base else "" for base in ours.values()]
    if any(floors):
        rows.append(["hardware floor", *floors, "", ""])
    return table(("form", *shapes, "peak MB", "kept MB"), rows)


def _show(seconds: float | None, base: float | None, gpu: bool) -> str:
    if seconds is None:
        return ""
    return ", ".join([microseconds(seconds)] * gpu + ([f"{ratio(seconds / base)} ×"] if base else []))


def _cell(result: Result | None, ours: Result | None, gpu: bool) -> str:
    """Cold, and warm in brackets."""
    if result is None:
        return ""
    cold = _show(result.seconds, ours and ours.seconds, gpu)
    warm = _show(result.warm_seconds, ours and ours.warm_seconds, gpu)
    return f"{cold} ({warm})" if warm else cold


def growth(run: Run) -> str:
    """Time over n of the label step, over ours at the smallest n; exponents, share of linear growth, and bend."""
    found = curves(run)
    sizes = sorted({point.n for curve in found for point in curve.points})
    ours = next((curve for curve in found if curve.contender == "snnet"), None)
    if ours is None or len(sizes) < 2:
        return ""
    rows = []
    for curve in found:
        by_n = {point.n: ratio(point.seconds / ours.points[0].seconds) for point in curve.points}
        fits = map(hundredths, (curve.exponent, curve.linearity(12_936), curve.bend))
        rows.append([words.contender(curve.contender), *(by_n.get(n, "") for n in sizes), *fits])
    return table(("form", *(f"n {n:,}" for n in sizes), "exponent", "of linear", "bend"), rows)


def instructions() -> str:
    """The committed instruction counts."""
    counts = json.loads(INSTRUCTIONS.read_text())["counts"]
    names = next(iter(counts.values()))
    rows = [[name, *(f"{of[name]:,}" for of in counts.values())] for name in names]
    return table(("operation", *counts), rows)
