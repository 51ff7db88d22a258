"""Which images the built-in set has: fixed sizes, spread over identities and cameras by the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_CAMERAS = 5
NUM_TRAIN_IDENTITIES = 200
NUM_TEST_IDENTITIES = 150
NUM_TRAIN_IMAGES = 2400
NUM_GALLERY_IMAGES = 1800  # of the test identities; the distractors come on top
NUM_DISTRACTORS = 150
QUERIES_PER_IDENTITY = 2
MIN_IMAGES, MAX_IMAGES = 6, 20  # of an identity, without its queries

TRAIN_FOLDER, QUERY_FOLDER, GALLERY_FOLDER = "bounding_box_train", "query", "bounding_box_test"

# First word of every generator's seed after the set's own: it keeps the streams apart.
STREAM_PLAN, STREAM_PERSON, STREAM_SCENE, STREAM_IMAGE = range(4)
SPLIT_TRAIN, SPLIT_TEST, SPLIT_DISTRACTOR = range(3)


@dataclass(frozen=True)
class Shot:
    """One image of the set: ``identity`` counts from 0 within ``split``, ``camera`` from 0."""

    folder: str
    split: int
    identity: int
    camera: int
    number: int

    @property
    def pid(self) -> int:
        """Identity number as the file name has it: 0 for distractors, test after training."""
        if self.split == SPLIT_DISTRACTOR:
            return 0
        return self.identity + 1 + (NUM_TRAIN_IDENTITIES if self.split == SPLIT_TEST else 0)

    @property
    def file_name(self) -> str:
        return f"{self.pid:04d}_c{self.camera + 1}s1_{self.number:06d}_00.png"


def plan_shots(seed: int) -> list[Shot]:
    """List every image of the set of ``seed``; the numbers of images do not depend on the seed."""
    train = _plan_identities(seed, SPLIT_TRAIN, NUM_TRAIN_IDENTITIES, NUM_TRAIN_IMAGES, TRAIN_FOLDER)
    gallery = _plan_identities(seed, SPLIT_TEST, NUM_TEST_IDENTITIES, NUM_GALLERY_IMAGES, GALLERY_FOLDER)
    queries = _plan_queries(seed, gallery)
    distractors = [
        Shot(GALLERY_FOLDER, SPLIT_DISTRACTOR, number, number % NUM_CAMERAS, number + 1)
        for number in range(NUM_DISTRACTORS)
    ]
    return train + queries + gallery + distractors


def _plan_identities(seed: int, split: int, identities: int, images: int, folder: str) -> list[Shot]:
    rng = np.random.default_rng([seed, STREAM_PLAN, split])
    sizes = rng.permutation(_unequal_sizes(identities, images))
    shots = []
    for identity, size in enumerate(sizes.tolist()):
        cameras = rng.permutation(NUM_CAMERAS)[: rng.integers(2, NUM_CAMERAS + 1)]
        # One image in each camera, the rest wherever: cameras of an identity hold unequal numbers too.
        where = np.concatenate([cameras, rng.choice(cameras, size - len(cameras))])
        for camera in sorted(cameras.tolist()):
            for number in range(int((where == camera).sum())):
                shots.append(Shot(folder, split, identity, camera, number + 1))
    return shots


def _unequal_sizes(identities: int, images: int) -> np.ndarray:
    """Sizes that rise from MIN_IMAGES to MAX_IMAGES along a power curve and sum to ``images``."""
    spread = MAX_IMAGES - MIN_IMAGES
    mean = (images / identities - MIN_IMAGES) / spread
    position = np.linspace(0.0, 1.0, identities)
    sizes = MIN_IMAGES + np.floor(spread * position ** (1.0 / mean - 1.0)).astype(np.int64)
    missing = images - int(sizes.sum())
    middle = (identities - missing) // 2
    sizes[middle : middle + missing] += 1  # what rounding down left over; the ends keep their bounds
    return sizes


def _plan_queries(seed: int, gallery: list[Shot]) -> list[Shot]:
    """At most two queries per test identity, from different cameras of those it has gallery images in."""
    rng = np.random.default_rng([seed, STREAM_PLAN, SPLIT_TEST, 1])
    per_camera: dict[int, dict[int, int]] = {}
    for shot in gallery:
        seen = per_camera.setdefault(shot.identity, {})
        seen[shot.camera] = max(seen.get(shot.camera, 0), shot.number)
    queries = []
    for identity, seen in sorted(per_camera.items()):
        for camera in sorted(rng.permutation(sorted(seen))[:QUERIES_PER_IDENTITY].tolist()):
            queries.append(Shot(QUERY_FOLDER, SPLIT_TEST, identity, camera, seen[camera] + 1))
    return queries
