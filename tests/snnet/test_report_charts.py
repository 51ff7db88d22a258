"""Charts of a report: ticks, places, colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from snnet.reporting.chart import Chart, Series, draw, nice_ticks
from snnet.reporting.drawing import DARK, LIGHT, PNG_SCALE, Box, Line, to_png, to_svg


def test_ticks_are_round_and_cover_the_values() -> None:
    assert nice_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert nice_ticks(0, 4.6) == [0, 1, 2, 3, 4, 5]
    assert nice_ticks(0, 0.013) == [0, 0.005, 0.01, 0.015]
    assert nice_ticks(3.0, 3.0) == [3, 4, 5, 6] and nice_ticks(0, 0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for high in np.geomspace(1e-3, 1e6, 200):
        ticks = nice_ticks(0, float(high))
        assert 2 <= len(ticks) <= 6 and ticks[-1] >= high > ticks[-2]


def test_a_chart_draws_its_values_where_they_belong() -> None:
    points = [(1, 20.0), (2, 60.0), (4, 100.0)]
    chart = Chart("c", "training", "A <title>", "%", "", [Series("one", points)], (0, 4), limits=(0.0, 100.0))
    drawing = draw(chart)
    grid = sorted({i.points[0][1] for i in drawing.items if isinstance(i, Line) and i.role == "grid"})
    top, bottom = grid[0], grid[-1]
    line = [i for i in drawing.items if isinstance(i, Line) and i.role == "series-0"][-1]
    heights = [(bottom - y) / (bottom - top) for _, y in line.points]
    assert heights == pytest.approx([0.2, 0.6, 1.0])
    left, right = (
        (chart_x := next(i.points for i in drawing.items if isinstance(i, Line) and i.role == "axis"))[0][0],
        chart_x[1][0],
    )
    assert [(x - left) / (right - left) for x, _ in line.points] == pytest.approx([0.25, 0.5, 1.0])
    assert chart.description() == (
        "one: 20.0 % after 1 epoch, 100.0 % after 4 epochs, between 20.0 % and 100.0 %."
    )
    svg = to_svg(drawing, "c")
    assert "A &lt;title&gt;" in svg and svg.count("<circle") == 3
    image = Image.open(io.BytesIO(to_png(drawing)))
    assert image.size == (480 * PNG_SCALE, 272 * PNG_SCALE)
    x, y = line.points[1]
    assert image.getpixel((round(x * PNG_SCALE), round(y * PNG_SCALE))) == tuple(
        bytes.fromhex(LIGHT["series-0"][1:])
    )


def test_bars_stand_on_one_another() -> None:
    series = [Series("low", [(1, 3.0), (2, 1.0)]), Series("high", [(1, 1.0), (2, 3.0)])]
    chart = Chart("c", "time", "", "s", "", series, (1, 2), limits=(0.0, 4.0), stacked=True)
    boxes = [i for i in draw(chart).items if isinstance(i, Box) and i.width != 12]  # without the legend's
    low, high = boxes[:2], boxes[2:]
    assert [box.height / (low[0].height / 3) for box in boxes] == pytest.approx([3, 1, 1, 3])
    for below, above in zip(low, high, strict=True):
        assert above.at[1] + above.height == pytest.approx(below.at[1])
        assert above.at[0] == below.at[0]


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours."""

    def luminance(color: str) -> float:
        parts = [part / 255 for part in bytes.fromhex(color[1:])]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_the_paper(colors: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for role in ("ink", "muted", "right", "wrong", "series-0"):  # words
        assert contrast(colors[role], colors["paper"]) >= 4.5, role
    for role in colors.keys() - {"paper", "grid"}:  # the rest of what has a meaning
        assert contrast(colors[role], colors["paper"]) >= 3, role
