"""Charts of a report: places, colours, words, the same bytes each time."""

from __future__ import annotations

import io
import math
import re
from itertools import combinations
from typing import Any

import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from snnet.files.own_files import REPORT_MARK
from snnet.reporting.charts import HEIGHT, PNG_SCALE, STYLE, WIDTH, draw, render
from snnet.reporting.colors import DARK, LIGHT
from snnet.reporting.curves import SECONDS_ROLES, Chart, Series


def chart(points: list[tuple[int, float]], **changes: Any) -> Chart:
    values = {"unit": "%", "limits": (0.0, 100.0), "epochs": (0, 4), "each_epoch": False}
    return Chart("c", [Series("<one>", points, "series-0")], **{**values, **changes})


def styled(chart: Chart) -> tuple[Figure, list[str]]:
    with matplotlib.style.context(["default", STYLE]):
        return draw(chart)


@pytest.mark.parametrize("high", [0.0, 1e-3, 0.013, 3.0, 4.6, 100.0, 123456.0, 1e12, 3e30, 3.4e38])
def test_the_axis_begins_at_0_and_its_last_number_is_above_every_value(high: float) -> None:
    figure, _ = styled(chart([(1, 0.0), (2, high)], limits=None))
    low, top = figure.axes[0].get_ylim()
    ticks = [tick for tick in figure.axes[0].get_yticks() if low <= tick <= top]
    assert 2 <= len(ticks) <= 11
    if high:
        assert low == 0 and top == pytest.approx(ticks[-1]) and ticks[-1] >= high > ticks[-2]


def test_a_chart_draws_its_values_where_they_belong() -> None:
    points = [(1, 20.0), (2, 60.0), (4, 100.0)]
    figure, tips = styled(chart(points))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    line = axes.lines[0]
    assert line.get_xydata().tolist() == [list(point) for point in points]
    assert axes.get_ylim() == (0, 100) and axes.get_xlim() == (0, 4)
    area = axes.get_window_extent()
    places = (axes.transData.transform(points) - (area.x0, area.y0)) / (area.width, area.height)
    np.testing.assert_allclose(places, [[0.25, 0.2], [0.5, 0.6], [1.0, 1.0]])
    assert tips == [
        "<one>: 20.0 % after 1 epoch",
        "<one>: 60.0 % after 2 epochs",
        "<one>: 100.0 % after 4 epochs",
    ]
    assert chart(points).description() == (
        "<one>: 20.0 % after 1 epoch, 100.0 % after 4 epochs, between 20.0 % and 100.0 %."
    )
    _, png = render(chart(points))
    image = Image.open(io.BytesIO(png))
    assert image.size == (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE) == (960, 544)
    x, y = axes.transData.transform(points[1]) / figure.dpi * 72 * PNG_SCALE
    expected = tuple(bytes.fromhex(LIGHT["series-0"][1:]))
    assert image.convert("RGB").getpixel((round(x), image.height - round(y))) == expected


@pytest.mark.parametrize("count", [8, 100])
def test_a_line_has_a_gap_where_epochs_have_no_value(count: int) -> None:
    points = [(x, float(x)) for x in range(1, count + 1) if x not in (4, 6, 7)]
    figure, tips = styled(chart(points, epochs=(0, count), limits=None, each_epoch=True))
    (line,) = [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert line.get_xdata().tolist() == list(range(1, count + 1))
    assert [x for x, y in line.get_xydata().tolist() if math.isnan(y)] == [4, 6, 7]
    dots = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == (
        [[5]] if count == 100 else [[1], [2], [3], [5], [8]]
    )  # one that no line leads to has a dot
    assert tips[-1] == ("<one>: 5.0 % after 5 epochs" if count == 100 else "<one>: 8.0 % after 8 epochs")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["<one>"]


def test_the_svg_fits_a_page_of_many() -> None:
    svg, png = render(chart([(1, 20.0), (2, 60.0), (4, 100.0)], mark=(1, "labels begin")))
    assert svg.startswith('<svg viewBox="0 0 480 272" role="img" aria-labelledby="c-title c-text">')
    assert "&lt;one&gt;: 60.0 % after 2 epochs</title>" in svg and "<one>" not in svg
    assert svg.count("<g><title>") == 3 and "labels begin" in svg
    assert all(name.startswith("c-") for name in re.findall(r' id="([^"]*)"', svg))
    assert all(name.startswith("#c-") for name in re.findall(r'href="([^"]*)"', svg))
    assert "url(" not in svg and "<style" not in svg and "http:" not in svg.replace("http://www.w3.org", "")
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()  # every colour is a role's
    assert {"series-0", "paper", "grid", "axis", "muted", "ink"} == set(re.findall(r"var\(--([\w-]+)\)", svg))
    # The same bytes again, whatever the process has set for its own plots, which stays as it is.
    with matplotlib.rc_context({"svg.hashsalt": "other", "lines.linewidth": 9, "text.usetex": True}):
        assert render(chart([(1, 20.0), (2, 60.0), (4, 100.0)], mark=(1, "labels begin"))) == (svg, png)
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert Image.open(io.BytesIO(png)).info["Software"] == REPORT_MARK


def test_bars_stand_on_one_another() -> None:
    series = [
        Series("low", [(1, 3.0), (2, 1.0)], "series-0"), Series("high", [(1, 1.0), (2, 3.0)], "quiet")
    ]  # fmt: skip
    figure, tips = styled(Chart("c", series, (1, 2), "s", stacked=True))
    bars = figure.axes[0].patches
    assert [(bar.get_y(), bar.get_height()) for bar in bars] == [(0, 3), (0, 1), (3, 1), (1, 3)]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([1, 2, 1, 2])
    assert [to_hex(bar.get_facecolor()) for bar in bars[1:3]] == [LIGHT["series-0"], LIGHT["quiet"]]
    assert tips[3] == "high: 3.0 s in epoch 1" and bars[3].get_gid() == "tip-3"


def lab(color: str) -> np.ndarray:
    """A colour in CIELAB, where a distance of 2 is one that can just be seen."""
    parts = np.array([part / 255 for part in bytes.fromhex(color[1:])])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / to_xyz.sum(axis=1))  # of no colour that is nearly black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_parts_of_a_bar_can_be_told_apart(colors: dict[str, str]) -> None:
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#ff0000") == pytest.approx([53.2, 80.1, 67.2], abs=0.1)
    for one, other in combinations(SECONDS_ROLES.values(), 2):
        assert np.linalg.norm(lab(colors[one]) - lab(colors[other])) >= 20, (one, other)


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
