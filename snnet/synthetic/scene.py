"""The places the cameras look at: wide pictures, of which every image shows a window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from snnet.synthetic.person import Colour, jitter

SCENE_WIDTH, SCENE_HEIGHT = 480, 160

# Scenes are paler than people: at full contrast they alone would decide which images are alike.
_HAZE: Colour = (140, 138, 134)
_CONTRAST = 0.4


def paint_scene(name: str, rng: np.random.Generator) -> Image.Image:
    """Paint the scene ``name`` (see ``_SCENES``); details differ with ``rng``. RGB, SCENE_WIDTH x SCENE_HEIGHT."""
    image = Image.new("RGB", (SCENE_WIDTH, SCENE_HEIGHT))
    _SCENES[name](ImageDraw.Draw(image), rng)
    haze = Image.new("RGB", image.size, _HAZE)
    return Image.blend(haze, image.filter(ImageFilter.GaussianBlur(0.7)), _CONTRAST)


def _plaza(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """A pale stone front with windows above a paved square."""
    _ground(draw, 78, (196, 190, 178), (172, 166, 156), rng, paved=True)
    draw.rectangle((0, 0, SCENE_WIDTH, 78), fill=(186, 166, 138))
    draw.rectangle((0, 66, SCENE_WIDTH, 78), fill=(150, 134, 114))
    for x in _along(rng, 34, 52):
        draw.rectangle((x, 8, x + 20, 54), fill=(214, 204, 186))
        draw.rectangle((x + 2, 10, x + 18, 52), fill=jitter(rng, (92, 106, 122), 14))
        draw.line((x + 10, 10, x + 10, 52), fill=(214, 204, 186))
    for x in _along(rng, 110, 150):
        draw.ellipse((x - 12, 62, x + 12, 86), fill=(70, 104, 62))
        draw.polygon(((x - 10, 84), (x + 10, 84), (x + 7, 98), (x - 7, 98)), fill=(132, 84, 62))


def _street(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Shop fronts, a line of parked cars, a kerb and asphalt."""
    _ground(draw, 92, (98, 100, 106), (86, 88, 94), rng, paved=False)
    draw.rectangle((0, 0, SCENE_WIDTH, 74), fill=(126, 110, 104))
    for x in _along(rng, 56, 74):
        draw.rectangle((x, 24, x + 50, 74), fill=jitter(rng, (74, 84, 94), 16))
        draw.rectangle((x - 2, 12, x + 52, 24), fill=jitter(rng, (150, 90, 80), 50))
    draw.rectangle((0, 74, SCENE_WIDTH, 92), fill=(150, 150, 150))
    for x in _along(rng, 84, 120):
        paint = jitter(rng, (130, 120, 130), 80)
        draw.rounded_rectangle((x + 14, 50, x + 58, 76), 8, fill=paint)
        draw.rounded_rectangle((x + 18, 53, x + 54, 66), 5, fill=(52, 60, 70))
        draw.rounded_rectangle((x, 65, x + 74, 88), 6, fill=paint)
        for wheel in (x + 14, x + 58):
            draw.ellipse((wheel - 7, 80, wheel + 7, 94), fill=(28, 28, 30))
    draw.rectangle((0, 95, SCENE_WIDTH, 98), fill=(196, 196, 190))


def _park(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Sky, trees, a hedge, grass and a path."""
    draw.rectangle((0, 0, SCENE_WIDTH, 60), fill=(178, 204, 226))
    _ground(draw, 58, (112, 150, 76), (98, 136, 66), rng, paved=False)
    for x in _along(rng, 44, 70):
        draw.rectangle((x - 4, 20, x + 4, 84), fill=(94, 72, 54))
        for _ in range(9):
            left, top = x + int(rng.integers(-30, 12)), int(rng.integers(-14, 26))
            draw.ellipse((left, top, left + 26, top + 22), fill=jitter(rng, (66, 112, 56), 18))
    for x in range(0, SCENE_WIDTH, 7):
        draw.ellipse((x - 8, 58 + int(rng.integers(-3, 4)), x + 8, 82), fill=jitter(rng, (52, 92, 48), 10))
    draw.rectangle((0, 106, SCENE_WIDTH, SCENE_HEIGHT), fill=(190, 174, 142))
    for _ in range(700):
        x, y = int(rng.integers(SCENE_WIDTH)), int(rng.integers(84, SCENE_HEIGHT))
        draw.line((x, y, x + 1, y - 2), fill=jitter(rng, (150, 162, 104) if y > 106 else (92, 130, 62), 14))


def _station(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """A tiled hall seen from above: posters, pillars, a yellow line on a shiny floor."""
    _ground(draw, 56, (150, 156, 162), (136, 142, 150), rng, paved=True)
    draw.rectangle((0, 0, SCENE_WIDTH, 56), fill=(202, 210, 212))
    for x in range(0, SCENE_WIDTH, 12):
        draw.line((x, 0, x, 56), fill=(182, 190, 194))
    for y in range(0, 56, 9):
        draw.line((0, y, SCENE_WIDTH, y), fill=(182, 190, 194))
    for x in _along(rng, 60, 90):
        draw.rectangle((x, 6, x + 30, 46), fill=jitter(rng, (130, 120, 120), 80))
        draw.rectangle((x + 4, 28, x + 26, 40), fill=jitter(rng, (200, 200, 190), 40))
    for x in _along(rng, 100, 140):
        draw.rectangle((x, 0, x + 18, 84), fill=(108, 116, 124))
        draw.rectangle((x + 3, 0, x + 7, 84), fill=(136, 144, 152))
    draw.rectangle((0, 118, SCENE_WIDTH, 125), fill=(214, 182, 62))


def _evening(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """A dark brick wall with lit shop windows and doors."""
    _ground(draw, 84, (92, 84, 82), (80, 74, 72), rng, paved=True)
    draw.rectangle((0, 0, SCENE_WIDTH, 84), fill=(104, 62, 52))
    for row, y in enumerate(range(0, 84, 6)):
        draw.line((0, y, SCENE_WIDTH, y), fill=(84, 52, 46))
        for x in range(4 * (row % 2), SCENE_WIDTH, 9):
            draw.line((x, y, x, y + 6), fill=(84, 52, 46))
    for x in _along(rng, 62, 86):
        draw.rectangle((x - 2, 14, x + 42, 78), fill=(52, 42, 40))
        draw.rectangle((x, 16, x + 40, 76), fill=jitter(rng, (236, 202, 136), 14))
        for _ in range(4):
            left, top = x + int(rng.integers(2, 32)), int(rng.integers(34, 62))
            draw.rectangle((left, top, left + 7, 76), fill=jitter(rng, (150, 104, 84), 50))


def _ground(
    draw: ImageDraw.ImageDraw, horizon: int, pale: Colour, dark: Colour, rng: np.random.Generator, paved: bool
) -> None:
    """Fill everything below ``horizon``, with joints that draw nearer to each other far away, or with stains."""
    draw.rectangle((0, horizon, SCENE_WIDTH, SCENE_HEIGHT), fill=pale)
    if not paved:
        for _ in range(60):
            x, y = int(rng.integers(SCENE_WIDTH)), int(rng.integers(horizon, SCENE_HEIGHT))
            draw.ellipse((x - 14, y - 2, x + 14, y + 2), fill=jitter(rng, dark, 6))
        return
    depth, row = 3.0, float(horizon)
    while row < SCENE_HEIGHT:
        draw.line((0, row, SCENE_WIDTH, row), fill=dark)
        row, depth = row + depth, depth * 1.45
    middle = SCENE_WIDTH / 2
    for x in range(-SCENE_WIDTH, 2 * SCENE_WIDTH, 26):
        draw.line(
            (middle + 0.6 * (x - middle), horizon, middle + 1.7 * (x - middle), SCENE_HEIGHT), fill=dark
        )


def _along(rng: np.random.Generator, least: int, most: int) -> list[int]:
    """Places from left to right, ``least`` to ``most`` pixels apart."""
    places, x = [], -int(rng.integers(least))
    while x < SCENE_WIDTH:
        places.append(x)
        x += int(rng.integers(least, most + 1))
    return places


_SCENES: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "plaza": _plaza,
    "street": _street,
    "park": _park,
    "station": _station,
    "evening": _evening,
}
