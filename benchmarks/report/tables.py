"""Tables of a run, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..floors import BOUNDS, Floor, Verdict, read_floors, verdicts
from ..results import Run
from ..shapes import SIZES, is_growth
from .growth import curves
from .words import in_words

DIMS = ("d2048", "d512")  # the columns of the short table


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


def stated(run: Run) -> str:
    """Every stated ratio with its floor and what this run measured."""
    rows = []
    for floor in read_floors(run.machine["device"]):
        for verdict in verdicts(floor, run):
            at, mark = verdict.shape, "" if verdict.holds else "✗ "
            if verdict.baseline:
                left_out = "".join(f", {in_words(name)} not measured" for name in verdict.left_out)
                at += f", against {in_words(verdict.baseline)}{left_out}"
            figure = "not measured" if verdict.measured is None else mark + shown(verdict)
            rows.append((floor.work, at, f"{floor.sign} {verdict.limit:g}", figure))
    return table(("work", "at", "floor", "measured"), rows)


def predicted() -> str:
    """The floors of a GPU beside what was counted for them, measured or not."""
    rows = []
    for floor in read_floors("cuda"):
        for shape, value in floor.predicted.items():
            amount = f"{value:g} MB" if floor.bound == "megabytes" else microseconds(value / 1e6)
            rows.append((floor.work, shape, f"{floor.sign} {floor.limits[shape]:g}", amount, floor.counted))
    return table(("work", "at", "floor", "predicted", "counted from"), rows)


def head(run: Run) -> str:
    """Times from the stated ratios at Market-1501's size, for the README: a table over d, and a sentence for each of
    the others."""
    rows, sentences = [], []
    for floor in read_floors(run.machine["device"]):
        found = {verdict.shape: shown(verdict, " ×") for verdict in verdicts(floor, run) if verdict.measured}
        if not found:
            continue
        if floor.bound == "at_least" and all("market-d" in shape for shape in floor.limits):
            by_dims = [next((v for shape, v in found.items() if f"-{d}-b" in shape), "") for d in DIMS]
            rows.append((floor.work, *by_dims))
        elif _is_market_time(floor):
            values = ", ".join(value + _short(shape) for shape, value in found.items())
            sentences.append(f"- {floor.work}: {values}")
    short = table(("time of … over ours", *(d.replace("d", "d ") for d in DIMS)), rows)
    return "\n\n".join([short, "\n".join(sentences)] if sentences else [short])


def _is_market_time(floor: Floor) -> bool:
    bound = BOUNDS[floor.bound]
    return bound.beside == "baseline" and bound.timed and any(s.startswith("market-") for s in floor.limits)


def _short(shape: str) -> str:
    """In brackets d where the size is Market-1501's, n and d of another; nothing where d does not matter."""
    size, *rest = shape.split("-")
    d = next((word for word in rest if word in DIMS), None)
    if d is None:
        return ""
    n = "" if size not in SIZES or size == "market" else f"n {SIZES[size]:,}, "
    return f" ({n}d {d[1:]})"


def operation(run: Run, name: str) -> str:
    """A row per contender: its time over ours, cold (warm in brackets), on a GPU the time itself too. Empty if only
    growth was measured."""
    found = {
        (result.contender, result.shape): result
        for result in run.results
        if result.operation == name and not is_growth(result.shape)
    }
    if not found:
        return ""
    gpu = run.machine["device"] == "cuda"

    def over(seconds: float | None, base: float | None) -> str:
        if seconds is None:
            return ""
        return ", ".join([microseconds(seconds)] * gpu + ([f"{ratio(seconds / base)} ×"] if base else []))

    ours = {shape: found.get(("snnet", shape)) for _, shape in found}
    rows = []
    for contender in dict.fromkeys(contender for contender, _ in found):
        first = next(result for (name, _), result in found.items() if name == contender)
        cells = []
        for shape, base in ours.items():
            result = found.get((contender, shape))
            cold = over(result and result.seconds, base and base.seconds)
            warm = over(result and result.warm_seconds, base and base.warm_seconds)
            cells.append(f"{cold} ({warm})" if warm else cold)
        memory = megabytes(first.peak_bytes), megabytes(first.held_bytes)
        rows.append([in_words(contender), *cells, *memory])
    return table(("form", *ours, "peak MB", "kept MB"), rows)


def growth(run: Run) -> str:
    """Time over n of the label step, over ours at the smallest n, and the exponents."""
    found = curves(run)
    sizes = sorted({point.n for curve in found for point in curve.points})
    ours = next((curve for curve in found if curve.contender == "snnet"), None)
    if ours is None or len(sizes) < 2:
        return ""
    rows = []
    for curve in found:
        by_n = {point.n: ratio(point.seconds / ours.points[0].seconds) for point in curve.points}
        exponent = "" if curve.exponent is None else f"{curve.exponent:.2f}"
        rows.append([in_words(curve.contender), *(by_n.get(n, "") for n in sizes), exponent])
    return table(("form", *(f"n {n:,}" for n in sizes), "exponent"), rows)
