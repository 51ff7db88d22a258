"""The five cameras: where each looks, how people pass it, and what it does to their colours."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from snnet.synthetic.plan import STREAM_SCENE
from snnet.synthetic.scene import paint_scene


@dataclass(frozen=True)
class Camera:
    """Angles in degrees; ``turns`` are the directions people usually pass in (0: towards the camera)."""

    scene: str
    turns: tuple[float, ...]
    tilt: float
    light: tuple[float, float]  # where it comes from: right and down are positive, at most 1
    exposure: float
    gradient: tuple[float, float]  # relative change of brightness over the width and the height
    gains: tuple[float, float, float]  # red, green, blue
    saturation: float
    gamma: float
    blur: float  # pixels
    resolution: float  # share of the pixels that the sensor resolves
    noise: float  # grey levels
    fill: float  # share of the frame's height that a person takes


CAMERAS = (
    Camera(
        scene="plaza",
        turns=(0.0, 180.0),
        tilt=6.0,
        light=(0.8, -0.6),
        exposure=1.02,
        gradient=(0.05, -0.03),
        gains=(1.02, 1.0, 0.97),
        saturation=1.0,
        gamma=0.98,
        blur=0.3,
        resolution=1.0,
        noise=3.0,
        fill=0.95,
    ),
    Camera(
        scene="street",
        turns=(180.0, 20.0),
        tilt=12.0,
        light=(-0.7, -0.7),
        exposure=0.96,
        gradient=(-0.04, 0.0),
        gains=(0.98, 1.0, 1.03),
        saturation=0.94,
        gamma=1.0,
        blur=0.5,
        resolution=0.9,
        noise=4.0,
        fill=0.91,
    ),
    Camera(
        scene="park",
        turns=(70.0, -70.0),
        tilt=8.0,
        light=(0.5, -0.9),
        exposure=1.04,
        gradient=(0.0, -0.05),
        gains=(1.0, 1.02, 0.97),
        saturation=1.03,
        gamma=0.97,
        blur=0.3,
        resolution=1.0,
        noise=3.0,
        fill=0.96,
    ),
    Camera(
        scene="station",
        turns=(35.0, 150.0),
        tilt=26.0,
        light=(0.0, -1.0),
        exposure=0.95,
        gradient=(0.03, -0.06),
        gains=(0.98, 1.02, 1.0),
        saturation=0.92,
        gamma=1.03,
        blur=0.4,
        resolution=0.7,
        noise=5.0,
        fill=0.89,
    ),
    Camera(
        scene="evening",
        turns=(-40.0, 140.0),
        tilt=16.0,
        light=(-0.9, -0.3),
        exposure=0.92,
        gradient=(-0.07, 0.03),
        gains=(1.05, 0.99, 0.94),
        saturation=0.97,
        gamma=1.02,
        blur=0.6,
        resolution=0.85,
        noise=6.0,
        fill=0.93,
    ),
)


@functools.cache
def scene_of(seed: int, camera: int) -> Image.Image:
    """The scene of one camera, the same behind everybody who passes it."""
    return paint_scene(CAMERAS[camera].scene, np.random.default_rng([seed, STREAM_SCENE, camera]))


def expose(camera: Camera, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn ``picture`` (float32 [h, w, 3], 0 to 255) into what the camera records (uint8 [h, w, 3])."""
    height, width = picture.shape[:2]
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None, None]
    slope_x, slope_y = camera.gradient[0] + rng.normal(0.0, 0.04), camera.gradient[1] + rng.normal(0.0, 0.03)
    light = np.float32(camera.exposure * math.exp(rng.normal(0.0, 0.055))) * (
        1.0 + np.float32(2.0 * slope_x) * across + np.float32(2.0 * slope_y) * down
    )
    gains = np.array(camera.gains, dtype=np.float32) * (1.0 + rng.normal(0.0, 0.013, 3).astype(np.float32))
    grey = ((picture[..., 0] + picture[..., 1] + picture[..., 2]) / 3.0)[..., None]
    saturation = np.float32(camera.saturation * rng.uniform(0.9, 1.1))
    lit = (grey + saturation * (picture - grey)) * (light * gains)
    image = Image.fromarray(np.clip(lit, 0.0, 255.0, out=lit).astype(np.uint8))
    recorded = _soften(image.point(_gamma_table(camera.gamma)), camera, rng)
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    noise *= np.float32(camera.noise * rng.uniform(0.7, 1.3))
    noise += np.asarray(recorded)
    levels: np.ndarray = np.clip(np.rint(noise, out=noise), 0.0, 255.0, out=noise).astype(np.uint8)
    return levels


@functools.cache
def _gamma_table(gamma: float) -> list[int]:
    return 3 * [round(255.0 * (level / 255.0) ** gamma) for level in range(256)]


def _soften(image: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Lose detail: focus and motion blur, and a sensor coarser than the image."""
    size = image.size
    blurred = image.filter(ImageFilter.GaussianBlur(camera.blur * rng.uniform(0.5, 1.6)))
    share = camera.resolution * rng.uniform(0.8, 1.0)
    if share > 0.95:
        return blurred
    coarse = blurred.resize((round(size[0] * share), round(size[1] * share)), Image.Resampling.BILINEAR)
    return coarse.resize(size, Image.Resampling.BILINEAR)
