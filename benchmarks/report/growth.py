"""How the label step's cost grows with n: power laws through the measured points, and figures of time and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..results import Result, Run
from ..shapes import is_growth
from .words import in_words

COLOURS = {
    "snnet": "#0b6e4f",
    "snnet-streaming": "#6bbf59",
    "pytorch-cache": "#1f77b4",
    "pytorch": "#7aa6d6",
    "loop": "#d1495b",
    "compile-cache": "#b8860b",
    "compile-static": "#e8a33d",
    "compile": "#8f6fb5",
}


class Curve(NamedTuple):
    """One contender's results over n, by rising n."""

    contender: str
    points: tuple[Result, ...]

    @property
    def exponent(self) -> float | None:
        """p of the power law time ~ n^p, fitted to the logarithms; None with fewer than two points."""
        logs = np.log([(point.n, point.seconds) for point in self.points])
        return float(np.polyfit(*logs.T, 1)[0]) if len(logs) > 1 else None


def curves(run: Run) -> list[Curve]:
    """The growth of every contender."""
    found: dict[str, list[Result]] = {}
    for result in run.results:
        if result.operation == "label-step" and is_growth(result.shape):
            found.setdefault(result.contender, []).append(result)
    return [Curve(name, tuple(sorted(points, key=lambda point: point.n))) for name, points in found.items()]


def draw(run: Run, folder: Path, name: str) -> dict[str, Path]:
    """Write the PNG files of ``run`` into ``folder``; by kind, none where there is no growth to show."""
    found = [curve for curve in curves(run) if len(curve.points) > 1]
    if not found:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    gpu = run.machine["device"] == "cuda"
    ours = next((curve for curve in found if curve.contender == "snnet"), found[0])
    unit = 1e-3 if gpu else ours.points[0].seconds
    label = "milliseconds" if gpu else f"time over ours at n = {ours.points[0].n:,}"
    paths = {kind: folder / f"{name}-{kind}.png" for kind in ("time", "memory")}
    _figure(paths["time"], found, lambda point: point.seconds / unit, label, exponents=True)
    _figure(paths["memory"], found, _gigabytes, "gigabytes", exponents=False)
    return paths


def _gigabytes(point: Result) -> float | None:
    """M, what the form keeps beside it, and the peak of a call; None where the peak is not known."""
    if point.peak_bytes is None:
        return None
    return (4 * point.n * point.d + (point.held_bytes or 0) + point.peak_bytes) / 1e9


def _figure(
    path: Path, found: list[Curve], value: Callable[[Result], float | None], label: str, *, exponents: bool
) -> None:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("the figures need matplotlib: pip install '.[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 5.8), dpi=120)
    for curve in found:
        points = [(point.n, measured) for point in curve.points if (measured := value(point)) is not None]
        if not points:
            continue
        text = in_words(curve.contender).replace("*", "").replace("`", "")
        if exponents and curve.exponent is not None:
            text += f"  (n^{curve.exponent:.2f})"
        style = {"color": COLOURS.get(curve.contender), "marker": "o", "linewidth": 2}
        axes.plot(*zip(*points, strict=True), label=text, **style)
    axes.set(xscale="log", yscale="log", xlabel="n, images in the memory", ylabel=label)
    axes.grid(which="both", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
