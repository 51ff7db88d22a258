"""Charts over the epochs of a run: lines, and stacked bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from snnet.reporting.drawing import Box, Dot, Drawing, Line, Words, words_width

WIDTH, HEIGHT = 480, 272
LEFT, RIGHT, BOTTOM = 46, 14, 40
LEGEND_LINE, GAP = 18, 16
LINES = ((), (6.0, 3.0), (2.0, 3.0), (8.0, 3.0, 2.0, 3.0))  # dashes: series differ without their colours too
X_LABEL = "epochs done"
MOST_DOTS = 40  # points of a series that are marked one by one


@dataclass(frozen=True)
class Series:
    """A name and its points (epochs done, value), by rising epoch."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Chart:
    """One chart; the series are lines, or with ``stacked`` bars on top of one another.

    Attributes:
        name: of its file and its place on the page.
        section: of the page that it belongs to.
        title: what it shows.
        unit: of the values, behind each of them.
        about: a sentence that says how to read it.
        digits: after the decimal point of a value.
        epochs: the range of the horizontal axis.
        limits: of the vertical axis; a None follows the values.
        mark: epochs done and words of a vertical line.
        roles: what each series is drawn in; none: series-0, series-1 and so on.
    """

    name: str
    section: str
    title: str
    unit: str
    about: str
    series: Sequence[Series]
    epochs: tuple[int, int]
    digits: int = 1
    limits: tuple[float | None, float | None] = (0.0, None)
    mark: tuple[int, str] | None = None
    stacked: bool = False
    roles: Sequence[str] = ()

    def role(self, place: int) -> str:
        """What the series of that place is drawn in."""
        return self.roles[place] if self.roles else f"series-{place}"

    def value(self, number: float) -> str:
        """A value with its unit."""
        return f"{number:.{self.digits}f}{' ' if self.unit else ''}{self.unit}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of all values, a row for each number of epochs done; empty where there is no value."""
        places = sorted({x for series in self.series for x, _ in series.points})
        values = [dict(series.points) for series in self.series]
        rows = [
            [str(x), *(f"{found[x]:.{self.digits}f}" if x in found else "" for found in values)]
            for x in places
        ]
        unit = f" ({self.unit})" if self.unit else ""
        return [X_LABEL, *(series.name + unit for series in self.series)], rows

    def description(self) -> str:
        """The course of each series in words."""
        parts = []
        for series in self.series:
            first, last = series.points[0], series.points[-1]
            words = f"{series.name}: {self.value(first[1])} after {epochs(first[0])}"
            if last[0] != first[0]:
                words += f", {self.value(last[1])} after {epochs(last[0])}"
                values = [value for _, value in series.points]
                words += f", between {self.value(min(values))} and {self.value(max(values))}"
            parts.append(words)
        return "; ".join(parts) + "."


def epochs(count: int) -> str:
    """A number of epochs in words."""
    return f"{count} epoch{'' if count == 1 else 's'}"


def draw(chart: Chart) -> Drawing:
    """The chart as a drawing."""
    tops = _stacked(chart.series) if chart.stacked else [list(series.points) for series in chart.series]
    legend, top = _legend(chart)
    plot = _Plot(chart, tops, top)
    items: list[Line | Dot | Box | Words] = [*legend, *plot.frame()]
    for place, (series, points) in enumerate(zip(chart.series, tops, strict=True)):
        role = chart.role(place)
        if chart.stacked:
            below = [(x, value - part) for (x, value), (_, part) in zip(points, series.points, strict=True)]
            items += plot.bars(series, below, points, role, chart)
            continue
        line = [plot.at(x, y) for x, y in points]
        items.append(Line(line, role, 2.0, LINES[place % len(LINES)]))
        if len(points) <= MOST_DOTS:
            tips = [f"{series.name}: {chart.value(y)} after {epochs(x)}" for x, y in points]
            items += [Dot(at, 2.6, role, tip) for at, tip in zip(line, tips, strict=True)]
    return Drawing(WIDTH, HEIGHT, chart.title, chart.description(), items)


def _stacked(series: Sequence[Series]) -> list[list[tuple[int, float]]]:
    """The upper ends of each series' bars; every series has the same epochs."""
    heights: dict[int, float] = {}
    tops = []
    for one in series:
        for x, value in one.points:
            heights[x] = heights.get(x, 0.0) + value
        tops.append([(x, heights[x]) for x, _ in one.points])
    return tops


def _legend(chart: Chart) -> tuple[list[Line | Dot | Box | Words], float]:
    """A sample and the name of each series, and where the plot below them begins."""
    items: list[Line | Dot | Box | Words] = []
    x, y = float(LEFT), 14.0
    for place, series in enumerate(chart.series):
        width = 30 + words_width(series.name)
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + LEGEND_LINE
        role = chart.role(place)
        if chart.stacked:
            items.append(Box((x, y - 9), 12, 10, role))
        else:
            items.append(Line([(x, y - 4), (x + 24, y - 4)], role, 2.0, LINES[place % len(LINES)]))
        items.append(Words((x + (17 if chart.stacked else 29), y), series.name, "ink"))
        x += width + GAP
    return items, y + (14 if chart.mark is None else 28)


class _Plot:
    """Where values lie: the area inside the axes."""

    def __init__(self, chart: Chart, points: Sequence[Sequence[tuple[int, float]]], top: float) -> None:
        ys = [y for series in points for _, y in series]
        low, high = chart.limits
        self.chart = chart
        self.top, self.bottom = top, HEIGHT - BOTTOM
        self.y_ticks = nice_ticks(min(ys) if low is None else low, max(ys) if high is None else high)
        first, last = chart.epochs
        edge = 0.5 if chart.stacked else 0.0  # half of a bar, which is as wide as an epoch
        self.x_range = first - edge, last + edge
        step = max(1, math.ceil((last - first) / 8))
        step = next(nice for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, step) if nice >= step)
        self.x_ticks = [x for x in range(first, last + 1) if x % step == 0]

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.x_range, (self.y_ticks[0], self.y_ticks[-1])
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - RIGHT - LEFT)
        return across, self.bottom - (y - y0) / (y1 - y0) * (self.bottom - self.top)

    def frame(self) -> list[Line | Words]:
        """Grid, axes and their numbers, and the mark."""
        items: list[Line | Words] = []
        digits = max(0, -math.floor(math.log10(self.y_ticks[1] - self.y_ticks[0]) + 1e-9))
        for y in self.y_ticks:
            height = self.at(self.x_range[0], y)[1]
            items.append(Line([(LEFT, height), (WIDTH - RIGHT, height)], "grid"))
            number = f"{y:,.{digits}f}" + (f" {self.chart.unit}" if y == self.y_ticks[-1] else "")
            items.append(Words((LEFT - 6, height + 4), number.rstrip(), anchor="end", size=11))
        items.append(Line([(LEFT, self.bottom), (WIDTH - RIGHT, self.bottom)], "axis"))
        for x in self.x_ticks:
            place = self.at(x, self.y_ticks[0])[0]
            items.append(Line([(place, self.bottom), (place, self.bottom + 4)], "axis"))
            items.append(Words((place, self.bottom + 17), str(x), anchor="middle", size=11))
        items.append(Words(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6), X_LABEL, anchor="middle", size=11))
        if self.chart.mark is not None:
            x, words = self.chart.mark
            place = self.at(x, self.y_ticks[0])[0]
            items.append(Line([(place, self.top), (place, self.bottom)], "axis", 1.0, (3.0, 3.0)))
            room = words_width(words, 11) / 2
            middle = min(max(place, LEFT + room), WIDTH - RIGHT - room)
            items.append(Words((middle, self.top - 5), words, anchor="middle", size=11))
        return items

    def bars(
        self,
        series: Series,
        below: Sequence[tuple[int, float]],
        above: Sequence[tuple[int, float]],
        role: str,
        chart: Chart,
    ) -> list[Box]:
        """A series' part of each bar."""
        width = min(40.0, 0.8 * (self.at(1, 0)[0] - self.at(0, 0)[0]))
        boxes = []
        for (x, low), (_, high), (_, value) in zip(below, above, series.points, strict=True):
            (place, foot), (_, head) = self.at(x, low), self.at(x, high)
            tip = f"{series.name}: {chart.value(value)} in epoch {x}"
            boxes.append(Box((place - width / 2, head), width, foot - head, role, tip))
        return boxes


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Two to ``most`` round numbers that begin at or below ``low`` and end at or above ``high``."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / (most - 1)))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= most:
            break
    return [round(tick * step, 12) for tick in range(first, last + 1)]
