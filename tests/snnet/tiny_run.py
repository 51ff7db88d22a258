"""A dataset small enough to train on in seconds, and processes that do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IDENTITIES, CAMERAS, IMAGES = 8, 2, 3  # of each split; images of an identity in a camera


def draw_market(root: Path, *, cameras: int = CAMERAS, identities: int = IDENTITIES) -> Path:
    """Two-coloured 32x16 'pedestrians' in the Market-1501 layout; a camera darkens, noise differs per image."""
    noise = np.random.default_rng(0)
    for split, first in (("bounding_box_train", 1), ("query", 101), ("bounding_box_test", 101)):
        (root / split).mkdir(parents=True)
        for pid in range(first, first + identities):
            clothes = np.random.default_rng(pid).integers(60, 256, (2, 1, 3))
            for camera in range(1, cameras + 1):
                for frame in range(1 if split == "query" else IMAGES):
                    picture = np.repeat(np.repeat(clothes, 16, axis=0), 16, axis=1) / camera**0.5
                    picture = (picture + noise.normal(0, 20, picture.shape)).clip(0, 255)
                    number = frame + 50 * (split == "query")
                    name = f"{pid:04d}_c{camera}s1_{number:06d}_00.png"
                    Image.fromarray(picture.astype(np.uint8)).save(root / split / name)
    return root


def environment() -> dict[str, str]:
    """For a process of this test: the same packages, and one thread as here."""
    return {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


def command_line(options: dict[str, Any]) -> list[str]:
    """The flags that say ``options``."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        )
    return words
