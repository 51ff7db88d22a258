"""Seven lossless images of several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from snnet.data import ImageSet

SIZES = [(24, 12), (20, 10), (32, 9), (24, 12), (16, 16), (24, 11), (28, 14)]


def pixels(index: int, size: tuple[int, int]) -> np.ndarray:
    """The image at ``index``, uint8 [height, width, 3]."""
    return np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)


def draw_images(folder: Path) -> ImageSet:
    """Write the images; they are of four identities and three cameras."""
    paths = []
    for index, size in enumerate(SIZES):
        paths.append(str(folder / f"{index}.png"))
        Image.fromarray(pixels(index, size)).save(paths[-1])
    return ImageSet(tuple(paths), np.arange(7) // 2, np.arange(7) % 3)
