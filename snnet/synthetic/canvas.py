"""A transparent picture with a second layer for light and shadow, filled with flat colours or cloth."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Paint = tuple[int, int, int] | Image.Image  # one colour, or a cloth as large as the canvas
Light = tuple[float, float]  # where it comes from: right and down are positive

_SHADE_NEUTRAL = 128
_SHADE_DARK, _SHADE_LIT = 92, 138
_ROUND = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0.0, 2.0 * math.pi, 17)[:-1].tolist()]

# The rounded start of a bar that points right; its end is the same turned by half a turn.
_HALF_ROUND = [
    (math.cos(angle), math.sin(angle)) for angle in np.linspace(0.5 * math.pi, 1.5 * math.pi, 6).tolist()
]


class Canvas:
    """Draws shapes at ``scale`` times the size of the picture that :meth:`finish` returns."""

    def __init__(self, width: int, height: int, scale: int, light: Light) -> None:
        self.size = (width * scale, height * scale)
        self.scale = scale
        self.light = light
        self._colour = Image.new("RGBA", self.size)
        self._shade = Image.new("L", self.size, _SHADE_NEUTRAL)
        self._draw_colour = ImageDraw.Draw(self._colour)
        self._draw_shade = ImageDraw.Draw(self._shade)

    def flat(self, points: list[Point], paint: Paint) -> None:
        """Fill a polygon; light and shadow stay as they are (a print on a shirt)."""
        if isinstance(paint, tuple):
            self._draw_colour.polygon(points, fill=(*paint, 255))
            return
        mask = Image.new("1", self.size)
        ImageDraw.Draw(mask).polygon(points, fill=1)
        self._colour.paste(paint, mask=mask)

    def solid(self, points: list[Point], core: list[Point], paint: Paint, dim: float = 1.0) -> None:
        """Fill a polygon whose ``core`` is lit and whose rim lies in shadow, so that it looks round."""
        self.flat(points, paint)
        self._draw_shade.polygon(points, fill=int(_SHADE_DARK * dim))
        self._draw_shade.polygon(core, fill=int(_SHADE_LIT * dim))

    def limb(
        self, start: Point, end: Point, start_radius: float, end_radius: float, paint: Paint, dim: float = 1.0
    ) -> None:
        """Draw a rounded, tapered bar between two points."""
        self.solid(
            _bar(start, end, start_radius, end_radius),
            _bar(
                self._towards_light(start, start_radius),
                self._towards_light(end, end_radius),
                0.6 * start_radius,
                0.6 * end_radius,
            ),
            paint,
            dim,
        )

    def ellipse(self, centre: Point, radius_x: float, radius_y: float, paint: Paint) -> None:
        lit = self._towards_light(centre, min(radius_x, radius_y))
        self.solid(
            ellipse_points(centre, radius_x, radius_y),
            ellipse_points(lit, 0.65 * radius_x, 0.65 * radius_y),
            paint,
        )

    def trunk(self, rings: list[tuple[float, float, float]], paint: Paint, dim: float = 1.0) -> None:
        """Draw a body given from top to bottom as rings (x, y, half width)."""
        shift = 0.25 * self.light[0]
        self.solid(
            _sides([(x, y, half) for x, y, half in rings]),
            _sides([(x + shift * half, y, 0.68 * half) for x, y, half in rings]),
            paint,
            dim,
        )

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 colours [h, w, 3] of 0 to 255, shaded, and float32 coverage [h, w, 1] of 0 to 1."""
        shade = self._shade.filter(ImageFilter.BoxBlur(self.scale)).reduce(self.scale)
        pixels = np.asarray(self._colour.reduce(self.scale), dtype=np.float32)
        factor = np.asarray(shade, dtype=np.float32)[..., None] / _SHADE_NEUTRAL
        return np.minimum(pixels[..., :3] * factor, 255.0), pixels[..., 3:] / 255.0

    def _towards_light(self, point: Point, radius: float) -> Point:
        return point[0] + 0.3 * radius * self.light[0], point[1] + 0.3 * radius * self.light[1]


def ellipse_points(centre: Point, radius_x: float, radius_y: float) -> list[Point]:
    return [(centre[0] + radius_x * cos, centre[1] + radius_y * sin) for cos, sin in _ROUND]


def _bar(start: Point, end: Point, start_radius: float, end_radius: float) -> list[Point]:
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    cos, sin = math.cos(angle), math.sin(angle)
    x, y, radius = *start, start_radius
    points = [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in _HALF_ROUND]
    x, y, radius = *end, end_radius
    return points + [
        (x - radius * (a * cos - b * sin), y - radius * (a * sin + b * cos)) for a, b in _HALF_ROUND
    ]


def _sides(rings: list[tuple[float, float, float]]) -> list[Point]:
    return [(x - half, y) for x, y, half in rings] + [(x + half, y) for x, y, half in reversed(rings)]
