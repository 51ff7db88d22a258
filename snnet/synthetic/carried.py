"""What a person wears on the head, on the back and carries."""

from __future__ import annotations

import math

from snnet.synthetic.canvas import Canvas, Point, ellipse_points
from snnet.synthetic.person import Colour, Person
from snnet.synthetic.view import Position, View


def draw_backpack(canvas: Canvas, person: Person, view: View) -> None:
    if not person.backpack:
        return
    height = person.height
    size = (0.17 * height, 0.235 * height, 0.09 * height)
    canvas.trunk(view.block((0.0, 0.705 * height, -0.095 * height), size), person.pack_colour)
    if view.nearness(0.0, -1.0) > 0.3:
        pocket = view.block((0.0, 0.655 * height, -0.145 * height), (0.12 * height, 0.085 * height, 0.0))
        canvas.trunk(pocket, _darker(person.pack_colour, 0.75))


def draw_straps(canvas: Canvas, person: Person, view: View) -> None:
    height, paint = person.height, _darker(person.pack_colour, 0.85)
    for side in (-1, 1):
        top = view.point(side * 0.06 * height, 0.835 * height, 0.045 * height)
        bottom = view.point(side * 0.072 * height, 0.66 * height, 0.062 * height)
        _line(canvas, top, bottom, 0.011 * height * view.pixels_per_metre, paint)


def draw_bag(canvas: Canvas, person: Person, view: View) -> None:
    if not person.bag:
        return
    height, side = person.height, person.side
    thin = 0.007 * height * view.pixels_per_metre
    paint = _darker(person.bag_colour, 0.8)
    if person.bag == "hand":
        centre = (side * 0.165 * height, 0.30 * height, 0.0)
        size = (0.05 * height, 0.15 * height, 0.13 * height)
        grip = view.point(side * 0.16 * height, 0.44 * height, 0.0)
        for reach in (-0.05, 0.05):
            _line(canvas, grip, view.point(centre[0], 0.37 * height, reach * height), thin, paint)
    else:
        centre = (side * 0.15 * height, 0.52 * height, -0.01 * height)
        size = (0.06 * height, 0.12 * height, 0.17 * height)
        start = -0.5 * side if person.bag == "cross" else 0.9 * side
        front = 0.065 * height if view.faces_camera else -0.065 * height
        if person.bag == "shoulder":
            front *= 0.4
        top = view.point(start * 0.1 * height, 0.835 * height, 0.5 * front)
        chest = view.point((0.5 * start + 0.45 * side) * 0.1 * height, 0.70 * height, front)
        end = view.point(centre[0], 0.56 * height, 0.5 * front)
        _line(canvas, top, chest, thin, paint)
        _line(canvas, chest, end, thin, paint)
    canvas.trunk(view.block(centre, size), person.bag_colour)


def draw_suitcase(canvas: Canvas, person: Person, view: View) -> None:
    height, side = person.height, person.side
    centre = (side * 0.17 * height, 0.19 * height, -0.16 * height)
    grip = view.point(side * 0.15 * height, 0.45 * height, -0.08 * height)
    top = view.point(centre[0], 0.32 * height, centre[2])
    _line(canvas, grip, top, 0.008 * height * view.pixels_per_metre, (70, 70, 74))
    canvas.trunk(view.block(centre, (0.15 * height, 0.27 * height, 0.10 * height)), person.pack_colour)
    for wheel in (-0.05, 0.05):
        x, y, scale = view.project((centre[0] + wheel * height, 0.045 * height, centre[2]))
        canvas.flat(ellipse_points((x, y), 0.016 * height * scale, 0.016 * height * scale), (30, 30, 32))


def draw_hat(canvas: Canvas, person: Person, view: View, head: Position, radius: float) -> None:
    if not person.hat:
        return
    x, y, scale = view.project(head)
    size = radius * scale
    crown = [(x + px * 1.02 * size, y - 0.12 * size - py * 1.05 * size) for px, py in _half_disc()]
    lit = [(x + px * 0.6 * size, y - 0.3 * size - py * 0.65 * size) for px, py in _half_disc()]
    canvas.solid(crown, lit, person.hat_colour)
    if person.hat == "cap":
        brim = view.point(head[0], head[1] + 0.2 * radius, head[2] + 1.25 * radius)
        if view.nearness(0.0, 1.0) > -0.5:
            width = size * (0.55 + 0.3 * abs(math.cos(view.turn)))
            canvas.ellipse(brim, width, 0.2 * size, _darker(person.hat_colour, 0.8))
    elif person.hat == "brim":
        canvas.ellipse((x, y - 0.18 * size), 1.65 * size, 0.3 * size, _darker(person.hat_colour, 0.9))
    else:
        band = ((-1.04, -0.32), (1.04, -0.32), (1.04, -0.08), (-1.04, -0.08))
        canvas.flat([(x + px * size, y + py * size) for px, py in band], _darker(person.hat_colour, 0.75))


def _half_disc() -> list[Point]:
    return [(math.cos(angle * math.pi / 10), math.sin(angle * math.pi / 10)) for angle in range(11)]


def _line(canvas: Canvas, start: Point, end: Point, half_width: float, paint: Colour) -> None:
    """Draw a strap: at least as thick as one canvas pixel, or it would vanish."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    across = max(half_width, 0.5)
    dx, dy = -math.sin(angle) * across, math.cos(angle) * across
    canvas.flat(
        [
            (start[0] + dx, start[1] + dy),
            (end[0] + dx, end[1] + dy),
            (end[0] - dx, end[1] - dy),
            (start[0] - dx, start[1] - dy),
        ],
        paint,
    )


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(channel * factor) for channel in colour)
    return red, green, blue
