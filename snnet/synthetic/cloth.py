"""The cloth a garment is cut from: its colours and pattern, laid out flat on the canvas."""

from __future__ import annotations

from PIL import Image, ImageDraw

from snnet.synthetic.canvas import Paint, Point
from snnet.synthetic.person import Colour, Garment


def cut_cloth(
    garment: Garment, size: tuple[int, int], pixels_per_metre: float, anchor: Point, half: float
) -> Paint:
    """Return what to paint the garment with.

    ``anchor`` is where the pattern starts (between the shoulders, or at the hip) and ``half`` the height in
    pixels below it at which a garment of two tones changes colour.
    """
    step = max(garment.period * pixels_per_metre, 4.0)
    x, y = anchor
    width, height = size
    if garment.pattern not in ("stripes", "bars", "checks", "dots", "two_tone"):
        return garment.colour
    cloth = Image.new("RGBA", size, (*garment.colour, 255))
    draw = ImageDraw.Draw(cloth)
    if garment.pattern == "two_tone":
        top = garment.motif % 2
        draw.rectangle((0, 0, width, y + half) if top else (0, y + half, width, height), fill=garment.second)
    elif garment.pattern == "stripes":
        for row in _steps(y, step, height):
            draw.rectangle((0, row, width, row + 0.45 * step), fill=garment.second)
    elif garment.pattern == "bars":
        for column in _steps(x, step, width):
            draw.rectangle((column, 0, column + 0.4 * step, height), fill=garment.second)
    elif garment.pattern == "checks":
        mixed = _mix(garment.colour, garment.second)
        for row in _steps(y, step, height):
            draw.rectangle((0, row, width, row + 0.5 * step), fill=mixed)
        for column in _steps(x, step, width):
            draw.rectangle((column, 0, column + 0.5 * step, height), fill=mixed)
            for row in _steps(y, step, height):
                draw.rectangle((column, row, column + 0.5 * step, row + 0.5 * step), fill=garment.second)
    else:
        radius = 0.24 * step
        for line, row in enumerate(_steps(y, 0.8 * step, height)):
            for column in _steps(x + (line % 2) * 0.5 * step, step, width):
                draw.ellipse(
                    (column - radius, row - radius, column + radius, row + radius), fill=garment.second
                )
    return cloth


def print_shapes(motif: int) -> list[list[Point]]:
    """Polygons of one of the four prints, in a square from -1 to 1 with y up."""
    if motif == 0:
        return [[(-1, -0.6), (1, -0.6), (1, 0.6), (-1, 0.6)]]
    if motif == 1:
        return [[(-1, -0.8), (1, -0.8), (0, 1)]]
    if motif == 2:
        return [[(0, -1), (0.9, 0), (0, 1), (-0.9, 0)]]
    return [[(-1, low), (1, low), (1, low + 0.4), (-1, low + 0.4)] for low in (-0.9, -0.2, 0.5)]


def _steps(start: float, step: float, end: int) -> list[float]:
    first = start % step - step
    return [first + index * step for index in range(int((end - first) / step) + 1)]


def _mix(one: Colour, other: Colour) -> Colour:
    red, green, blue = ((a + b) // 2 for a, b in zip(one, other, strict=True))
    return red, green, blue
