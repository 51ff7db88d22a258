"""Drawings of lines, boxes and words, as inline SVG for a page and as PNG.

What a thing is drawn in is a *role*: a CSS variable of the page, which has a light and a dark value, and a
colour of :data:`LIGHT` in a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 12
PNG_SCALE = 2  # pixels of a PNG for one unit of a drawing
_OVERSAMPLING = 2  # drawn larger and scaled down: lines without steps

# Role -> colour. Words have a contrast of at least 4.5 to the paper, lines of series of at least 3.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2328",
    "muted": "#59636e",
    "grid": "#e3e6ea",
    "axis": "#8b949e",
    "quiet": "#8a95a5",
    "series-0": "#2467b0",
    "series-1": "#b1540a",
    "series-2": "#137a55",
    "series-3": "#7a4bb0",
    "right": "#137a55",
    "wrong": "#c0362c",
}
DARK = {
    "paper": "#16191d",
    "ink": "#e7e9ec",
    "muted": "#a8b1bc",
    "grid": "#2c3138",
    "axis": "#6f7882",
    "quiet": "#6b7686",
    "series-0": "#74aef5",
    "series-1": "#f0a161",
    "series-2": "#5cc8a0",
    "series-3": "#bf9df2",
    "right": "#5cc8a0",
    "wrong": "#ff8a80",
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through ``points``; ``dash`` are lengths on and off, none for an unbroken one."""

    points: Sequence[Point]
    role: str
    width: float = 1.0
    dash: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dot:
    """A filled circle; ``tip`` is what a pointer over it shows."""

    at: Point
    radius: float
    role: str
    tip: str = ""


@dataclass(frozen=True)
class Box:
    """A filled rectangle, its top left corner at ``at``."""

    at: Point
    width: float
    height: float
    role: str
    tip: str = ""


@dataclass(frozen=True)
class Words:
    """Text on a baseline; ``anchor`` start, middle or end says which point of it lies at ``at``."""

    at: Point
    text: str
    role: str = "muted"
    anchor: str = "start"
    size: float = FONT_SIZE


@dataclass(frozen=True)
class Drawing:
    """``title`` and ``description`` are what someone who does not see the drawing gets."""

    width: int
    height: int
    title: str
    description: str
    items: Sequence[Line | Dot | Box | Words]


@lru_cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of a PNG."""
    return ImageFont.load_default(size)


def words_width(text: str, size: float = FONT_SIZE) -> float:
    """About how wide ``text`` is, in units of a drawing."""
    return float(font(size).getlength(text))


def to_svg(drawing: Drawing, name: str) -> str:
    """The drawing as an SVG element; ``name`` is unique on the page."""
    body = "".join(_svg_item(item) for item in drawing.items)
    return (
        f'<svg viewBox="0 0 {drawing.width} {drawing.height}" role="img" '
        f'aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{escape(drawing.title)}</title>'
        f'<desc id="{name}-text">{escape(drawing.description)}</desc>{body}</svg>'
    )


def _svg_item(item: Line | Dot | Box | Words) -> str:
    color = f"var(--{item.role})"
    if isinstance(item, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in item.points)
        dash = f' stroke-dasharray="{" ".join(map(str, item.dash))}"' if item.dash else ""
        return (
            f'<polyline points="{points}" fill="none" stroke-width="{item.width}" stroke-linejoin="round"{dash} '
            f'style="stroke:{color}"/>'
        )
    x, y = item.at
    if isinstance(item, Words):
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{item.size}" text-anchor="{item.anchor}" '
            f'style="fill:{color}">{escape(item.text)}</text>'
        )
    tip = f"<title>{escape(item.tip)}</title>" if item.tip else ""
    if isinstance(item, Dot):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{item.radius}" style="fill:{color}">{tip}</circle>'
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{item.width:.1f}" height="{item.height:.2f}" '
        f'style="fill:{color}">{tip}</rect>'
    )


def to_png(drawing: Drawing) -> bytes:
    """The drawing in the colours of :data:`LIGHT`, :data:`PNG_SCALE` pixels a unit."""
    scale = PNG_SCALE * _OVERSAMPLING
    image = Image.new("RGB", (drawing.width * scale, drawing.height * scale), LIGHT["paper"])
    canvas = ImageDraw.Draw(image)
    for item in drawing.items:
        _paint(canvas, item, scale)
    image = image.resize((drawing.width * PNG_SCALE, drawing.height * PNG_SCALE), Image.Resampling.BOX)
    return png_bytes(image)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _paint(canvas: ImageDraw.ImageDraw, item: Line | Dot | Box | Words, scale: int) -> None:
    color = LIGHT[item.role]
    if isinstance(item, Line):
        points = [(x * scale, y * scale) for x, y in item.points]
        width = max(1, round(item.width * scale))
        for part in _dashes(points, [length * scale for length in item.dash]):
            canvas.line(part, color, width, joint="curve")
        return
    x, y = item.at[0] * scale, item.at[1] * scale
    if isinstance(item, Words):
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[item.anchor]
        canvas.text((x, y), item.text, color, font(item.size * scale), anchor)
    elif isinstance(item, Dot):
        radius = item.radius * scale
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), color)
    elif item.height > 0:
        canvas.rectangle((x, y, x + item.width * scale - 1, y + max(0, item.height * scale - 1)), color)


def _dashes(points: Sequence[Point], lengths: Sequence[float]) -> list[list[Point]]:
    """The parts of a line that a dash pattern of lengths on and off leaves; all of it without one."""
    if not lengths or len(points) < 2:
        return [list(points)]
    parts: list[list[Point]] = [[points[0]]]
    place, left = 0, lengths[0]
    for (x0, y0), (x1, y1) in pairwise(points):
        distance = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        done = 0.0
        while distance - done > left:
            done += left
            at = (x0 + (x1 - x0) * done / distance, y0 + (y1 - y0) * done / distance)
            if place % 2 == 0:
                parts[-1].append(at)
            else:
                parts.append([at])
            place += 1
            left = lengths[place % len(lengths)]
        left -= distance - done
        if place % 2 == 0:
            parts[-1].append((x1, y1))
    return [part for part in parts if len(part) > 1]
