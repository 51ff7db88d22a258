"""How the label step's cost grows with n: the exponent of a power law through the measured points."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..results import Result, Run
from ..shapes import is_growth


class Curve(NamedTuple):
    """One contender's results over n, by rising n."""

    contender: str
    points: tuple[Result, ...]

    @property
    def exponent(self) -> float | None:
        """p of the power law time ~ n^p, fitted to the logarithms; None with fewer than two points."""
        return fitted_exponent([(point.n, point.seconds) for point in self.points])

    def linearity(self, n: int) -> float | None:
        """Time an image at the largest n over that at ``n``: 1 is linear growth."""
        start = next((point for point in self.points if point.n == n), None)
        if start is None or self.points[-1].n == n:
            return None
        return (self.points[-1].seconds / self.points[-1].n) / (start.seconds / n)

    @property
    def bend(self) -> float | None:
        """Time of each further image between the last two sizes over that between the two before: 1 is a line."""
        if len(self.points) < 3:
            return None
        first, middle, last = self.points[-3:]
        before = (middle.seconds - first.seconds) / (middle.n - first.n)
        return (last.seconds - middle.seconds) / (last.n - middle.n) / before


def fitted_exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """The slope of the least-squares line through (log n, log seconds)."""
    logs = np.log(list(points))
    return float(np.polyfit(*logs.T, 1)[0]) if len(logs) > 1 else None


def curves(run: Run) -> list[Curve]:
    """The growth of every contender."""
    found: dict[str, list[Result]] = {}
    for result in run.results:
        if result.operation == "label-step" and is_growth(result.shape):
            found.setdefault(result.contender, []).append(result)
    return [Curve(name, tuple(sorted(points, key=lambda point: point.n))) for name, points in found.items()]
