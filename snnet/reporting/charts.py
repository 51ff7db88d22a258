"""Charts drawn by matplotlib: SVG in the colours of the page, PNG for elsewhere."""

from __future__ import annotations

import io
import math
import re
from html import escape
from typing import TYPE_CHECKING

from snnet.files.own_files import REPORT_MARK
from snnet.reporting.colors import LIGHT
from snnet.reporting.curves import X_LABEL, Chart, epochs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 480, 272  # points: units of the SVG
PNG_SCALE = 2  # pixels of the PNG for one point
DASHES = ("-", (0, (3, 1.5)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))  # series differ without their colours too
MOST_DOTS = 40  # points of a series that are marked one by one
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "snnet", "text.parse_math": False, "font.size": 11,
    "font.sans-serif": ["DejaVu Sans"], "figure.facecolor": LIGHT["paper"], "axes.facecolor": LIGHT["paper"],
    "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["muted"], "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"], "axes.edgecolor": LIGHT["axis"], "xtick.color": LIGHT["axis"],
    "ytick.major.size": 0, "grid.color": LIGHT["grid"], "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.left": False, "axes.spines.right": False,
    "axes.autolimit_mode": "round_numbers", "axes.ymargin": 0, "legend.frameon": False,
}  # fmt: skip


def render(chart: Chart) -> tuple[str, bytes]:
    """The chart as an SVG element and as a PNG file: the same bytes each time, whatever matplotlib is set to."""
    from matplotlib import style

    svg, png = io.StringIO(), io.BytesIO()
    with style.context(["default", STYLE]):
        figure, tips = draw(chart)
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        figure.savefig(png, format="png", dpi=72 * PNG_SCALE, metadata={"Software": REPORT_MARK})
    return _for_page(svg.getvalue(), chart, tips), png.getvalue()


def draw(chart: Chart) -> tuple[Figure, list[str]]:
    """The chart as a figure, and what a pointer over its artist ``tip-0``, ``tip-1`` and so on shows."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((WIDTH / 72, HEIGHT / 72), layout="constrained")
    axes = figure.add_subplot()
    tips = _draw_bars(axes, chart) if chart.stacked else _draw_lines(axes, chart)
    first, last = chart.epochs
    edge = 0.5 if chart.stacked else 0.0  # half of a bar, which is as wide as an epoch
    axes.set_xlim(first - edge, last + edge)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter("{x:,g}" + (f" {chart.unit}" if chart.unit else ""))
    axes.set_xlabel(X_LABEL)
    axes.update_datalim([(first, 0)])
    axes.autoscale_view(scalex=False)
    if chart.limits:
        axes.set_ylim(chart.limits)
    if chart.mark:
        x, words = chart.mark
        axes.axvline(x, color=LIGHT["axis"], linewidth=1, linestyle=(0, (3, 3)))
        side = "left" if x < sum(chart.epochs) / 2 else "right"
        axes.text(x, 1.02, words, color=LIGHT["muted"], ha=side, transform=axes.get_xaxis_transform())
    figure.legend(loc="outside upper left", ncols=min(3, len(chart.series)))
    return figure, tips


def _draw_lines(axes: Axes, chart: Chart) -> list[str]:
    tips: list[str] = []
    for series, dashes in zip(chart.series, DASHES, strict=False):
        color, values = LIGHT[series.role], dict(series.points)
        places = range(min(values), max(values) + 1) if chart.each_epoch else list(values)
        heights = [values.get(x, math.nan) for x in places]  # NaN: a gap
        axes.plot(places, heights, color=color, linestyle=dashes, label=series.name, clip_on=False)
        for x, y in series.points:
            alone = chart.each_epoch and not values.keys() & {x - 1, x + 1}  # no line leads to it
            if alone or len(values) <= MOST_DOTS:
                axes.plot(x, y, "o", color=color, markersize=5, clip_on=False, gid=f"tip-{len(tips)}")
                tips.append(f"{series.name}: {chart.value(y)} after {epochs(x)}")
    return tips


def _draw_bars(axes: Axes, chart: Chart) -> list[str]:
    tips: list[str] = []
    first, last = chart.epochs
    width = min(0.8, 0.1 * (last - first + 1))
    tops: dict[int, float] = {}
    for series in chart.series:
        places, values = zip(*series.points, strict=True)
        below = [tops.get(x, 0.0) for x in places]
        bars = axes.bar(places, values, width, below, color=LIGHT[series.role], label=series.name)
        for bar, (x, value), foot in zip(bars, series.points, below, strict=True):
            bar.set_gid(f"tip-{len(tips)}")
            tips.append(f"{series.name}: {chart.value(value)} in epoch {x - 1}")  # the first epoch is 0
            tops[x] = foot + value
    return tips


def _for_page(svg: str, chart: Chart, tips: list[str]) -> str:
    """matplotlib's SVG as an element of the page: ids of its own, colours by role, words for who does not see it."""
    body = svg.partition("</defs>")[2]  # behind a style sheet that would count for the whole page
    body = re.sub(r' clip-path="[^"]*"', "", body)  # nothing lies outside of the axes
    body = re.sub(r'<g id="tip-(\d+)">', lambda tip: f"<g><title>{escape(tips[int(tip[1])])}</title>", body)
    body = re.sub(r'( id="|href="#)', rf"\g<1>{chart.name}-", body)
    for role, color in LIGHT.items():
        body = body.replace(color, f"var(--{role})")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{chart.name}-title {chart.name}-text">'
        f'<desc id="{chart.name}-text">{escape(chart.description())}</desc>{body}'
    )
