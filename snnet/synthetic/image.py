"""One image of the set: scene, passers-by, the person, what stands in front, and the camera's own marks."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from snnet.synthetic.camera import CAMERAS, Camera, expose, scene_of
from snnet.synthetic.canvas import Canvas
from snnet.synthetic.figure import Figure
from snnet.synthetic.person import Person, person_of, sample_person
from snnet.synthetic.plan import STREAM_IMAGE, Shot
from snnet.synthetic.scene import SCENE_HEIGHT, SCENE_WIDTH
from snnet.synthetic.view import Pose, View

HEIGHT, WIDTH = 128, 64
# A detector's box is narrower than 1:2; what lies in it is stretched to the images' size.
_FRAME_WIDTH = 48
_SCALE = 2  # figures are drawn this much larger and averaged down, for smooth edges

_PASSER_BY = 0.15
_OCCLUSION = 0.20
_CUT_BY_FRAME = 0.08


def draw_image(seed: int, shot: Shot) -> np.ndarray:
    """Draw one image, uint8 [128, 64, 3]; it depends on ``seed`` and ``shot`` alone."""
    is_query = int(shot.folder == "query")
    words = [seed, STREAM_IMAGE, shot.split, is_query, shot.identity, shot.camera, shot.number]
    rng = np.random.default_rng(words)
    camera = CAMERAS[shot.camera]
    picture = _window(scene_of(seed, shot.camera), rng)
    if rng.random() < _PASSER_BY:
        # Further away: smaller, higher up in the frame, to one side.
        aside = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.24, 0.5))
        _add_person(picture, sample_person(rng), camera, rng, aside, float(rng.uniform(0.45, 0.75)))
    shift = rng.normal(0.0, 0.028)
    zoom = float(np.clip(rng.normal(1.0, 0.028), 0.93, 1.07))
    _add_person(picture, person_of(seed, shot.split, shot.identity), camera, rng, shift, zoom)
    if rng.random() < _OCCLUSION:
        _occlude(picture, camera, rng)
    return expose(camera, _crop(picture, rng), rng)


def _window(scene: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A piece of the scene, float32 [128, 64, 3]: where the person happens to walk."""
    zoom = rng.uniform(0.85, 1.2)
    width, height = _FRAME_WIDTH * zoom, HEIGHT * zoom
    left = rng.uniform(0.0, SCENE_WIDTH - width)
    top = SCENE_HEIGHT - height - rng.uniform(0.0, SCENE_HEIGHT - height)
    box = (left, top, left + width, top + height)
    return np.array(
        scene.resize((_FRAME_WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box), dtype=np.float32
    )


def _add_person(
    picture: np.ndarray, person: Person, camera: Camera, rng: np.random.Generator, aside: float, zoom: float
) -> None:
    """Draw ``person`` into ``picture`` in place, standing ``aside`` of the middle (share of the width)."""
    tilt = math.radians(camera.tilt + rng.normal(0.0, 1.0))
    turn = math.radians(float(rng.choice(camera.turns)) + rng.normal(0.0, 8.0))
    tall = HEIGHT * camera.fill * zoom
    feet = HEIGHT * (0.5 + 0.5 * camera.fill) * (1.0 + rng.normal(0.0, 0.009))
    if zoom < 0.8:
        feet -= 0.25 * HEIGHT * (1.0 - zoom)
    canvas = Canvas(_FRAME_WIDTH, HEIGHT, _SCALE, camera.light)
    view = View(
        turn=turn,
        tilt=tilt,
        distance=float(rng.uniform(4.5, 8.0)),
        pixels_per_metre=_SCALE * tall / (person.height * (math.cos(tilt) + 0.12 * math.sin(tilt))),
        x=_SCALE * _FRAME_WIDTH * (0.5 + aside),
        y=_SCALE * (feet - 0.5 * tall),
        middle=0.5 * person.height,
    )
    Figure(canvas, person, _pose(rng), view).draw()
    colour, cover = canvas.finish()
    _cast_shadow(picture, _FRAME_WIDTH * (0.5 + aside), feet - 0.012 * tall, 0.16 * tall, camera.light[0])
    picture *= 1.0 - cover
    picture += cover * colour


def _pose(rng: np.random.Generator) -> Pose:
    walking = rng.random() < 0.8
    stride = float(rng.uniform(0.3, 0.62)) if walking else float(rng.uniform(0.0, 0.12))
    return Pose(
        phase=float(rng.uniform(0.0, 2.0 * math.pi)),
        stride=stride,
        swing=stride * float(rng.uniform(0.5, 1.1)),
        elbow=float(rng.uniform(0.1, 0.7)),
        spread=float(rng.uniform(0.10, 0.24)),
        raised=int(rng.choice((-1, 1))) if rng.random() < 0.1 else 0,
        lean=float(rng.normal(0.06, 0.04)),
    )


def _cast_shadow(picture: np.ndarray, x: float, y: float, radius: float, light: float) -> None:
    """Darken the ground around the feet, away from the light."""
    rows = (np.arange(HEIGHT, dtype=np.float32)[:, None] - np.float32(y)) / np.float32(0.28 * radius)
    columns = np.arange(_FRAME_WIDTH, dtype=np.float32)[None, :] - np.float32(x - 0.6 * light * radius)
    distance = rows**2 + (columns / np.float32(1.4 * radius)) ** 2
    picture *= 1.0 - 0.5 * np.exp(-distance)[..., None]


def _occlude(picture: np.ndarray, camera: Camera, rng: np.random.Generator) -> None:
    """Put something between the camera and the person, in place."""
    kind = rng.integers(4)
    if kind == 0:
        aside = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.38, 0.5))
        _add_person(picture, sample_person(rng), camera, rng, aside, float(rng.uniform(1.05, 1.2)))
        return
    image = Image.new("RGBA", (_FRAME_WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    grey = int(rng.integers(50, 150))
    if kind == 1:  # a lamp post
        x = float(rng.uniform(6, _FRAME_WIDTH - 6))
        draw.rectangle((x - 3, 0, x + 3, HEIGHT), fill=(grey, grey, grey, 255))
        draw.rectangle((x - 2, 0, x - 1, HEIGHT), fill=(grey + 40, grey + 40, grey + 40, 255))
    elif kind == 2:  # a wall or bench
        y = float(rng.uniform(0.66, 0.84)) * HEIGHT
        draw.rectangle((0, y, _FRAME_WIDTH, HEIGHT), fill=(grey + 30, grey + 12, grey, 255))
        draw.rectangle((0, y, _FRAME_WIDTH, y + 4), fill=(grey + 60, grey + 42, grey + 30, 255))
    else:  # a bush
        centre = float(rng.uniform(0, _FRAME_WIDTH))
        for _ in range(26):
            x, y = centre + rng.normal(0.0, 11.0), HEIGHT - abs(rng.normal(0.0, 14.0))
            green = int(rng.integers(60, 120))
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=(green // 2, green, green // 2, 255))
    layer = np.asarray(image, dtype=np.float32)
    cover = layer[..., 3:] / 255.0
    picture *= 1.0 - cover
    picture += cover * layer[..., :3]


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretch to the images' size; now and then a poor box that loses feet, head or a side."""
    left, top, right, bottom = 0.0, 0.0, float(_FRAME_WIDTH), float(HEIGHT)
    if rng.random() < _CUT_BY_FRAME:
        side, share = rng.integers(4), rng.uniform(0.08, 0.24)
        left += share * _FRAME_WIDTH * (side == 0)
        right -= share * _FRAME_WIDTH * (side == 1)
        top += 0.5 * share * HEIGHT * (side == 2)
        bottom -= share * HEIGHT * (side == 3)
    image = Image.fromarray(np.clip(picture, 0.0, 255.0).astype(np.uint8))
    box = (left, top, right, bottom)
    return np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
