"""From decoded crops to network input: the test transform, and the training augmentation of a whole batch.

An augmentation is two steps. :func:`draw_augmentation` turns uniform random numbers into the parameters of
each image; :func:`augment` applies them. Several images go through each operation at once, which on a CPU
costs a fraction of an image-by-image chain of transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_AREA = (0.64, 1.0)
# Height/width of the crop over height/width of the network's input: 2 to 3 for the usual input of 2.
CROP_STRETCH = (1.0, 1.5)
ROTATION_DEGREES = 10.0
JITTER = 0.2
ERASE_PROBABILITY = 0.5
ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)

# A rectangle that does not fit is drawn anew; after this many attempts a fallback takes its place.
ATTEMPTS = 10
RECTANGLE_UNIFORMS = 2 * ATTEMPTS + 2
UNIFORMS = 2 * RECTANGLE_UNIFORMS + 6

# As many pixels as stay in a core's cache through all operations; whole batches would take twice as long.
CHUNK_PIXELS = 1 << 17

# ITU-R 601 luma, as image libraries turn RGB to grey; the weights sum to 1.
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """The parameters of one batch; rectangles are (top, left, height, width) in pixels."""

    crop: np.ndarray  # int64 [B, 4], in the native image
    flip: np.ndarray  # bool [B]
    angle: np.ndarray  # float64 [B], degrees, counter-clockwise
    brightness: np.ndarray  # float64 [B], factors around 1
    contrast: np.ndarray  # float64 [B]
    saturation: np.ndarray  # float64 [B]
    erase: np.ndarray  # int64 [B, 4], in the network's input; height 0 where nothing is erased

    def select(self, rows: slice) -> Augmentation:
        """The parameters of some images of the batch."""
        return Augmentation(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw_augmentation(uniforms: np.ndarray, sizes: np.ndarray, height: int, width: int) -> Augmentation:
    """The augmentation that uniform random numbers stand for.

    Random resized crop of area 0.64 to 1 and height/width 2 to 3 (for an input twice as high as wide; in
    proportion for others), or the whole image where none fits. Horizontal flip with probability 1/2, rotation by
    up to 10 degrees, brightness, contrast and saturation factors from 0.8 to 1.2, random erasing with probability
    1/2 of 2 to 33 % of the area with height/width 0.3 to 3.3. Ratios are log-uniform, all else is uniform.

    Args:
        uniforms: float64 [B, UNIFORMS] in [0, 1).
        sizes: int64 [B, 2], native height and width.
        height, width: the network's input, in pixels.
    """
    crop_uniforms, erase_uniforms, rest = np.split(
        uniforms, [RECTANGLE_UNIFORMS, 2 * RECTANGLE_UNIFORMS], axis=1
    )
    ratio = (CROP_STRETCH[0] * height / width, CROP_STRETCH[1] * height / width)
    crop, fits = _draw_rectangles(crop_uniforms, sizes, CROP_AREA, ratio)
    crop = np.where(fits[:, None], crop, np.concatenate([np.zeros_like(sizes), sizes], axis=1))
    output_sizes = np.broadcast_to(np.array([height, width]), sizes.shape)
    erase, fits = _draw_rectangles(erase_uniforms, output_sizes, ERASE_AREA, ERASE_RATIO)
    erases = fits & (rest[:, 5] < ERASE_PROBABILITY)
    brightness, contrast, saturation = 1 + JITTER * (2 * rest[:, 2:5].T - 1)
    return Augmentation(
        crop=crop,
        flip=rest[:, 0] < 0.5,
        angle=ROTATION_DEGREES * (2 * rest[:, 1] - 1),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        erase=np.where(erases[:, None], erase, 0),
    )


def _draw_rectangles(
    uniforms: np.ndarray, sizes: np.ndarray, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles in images of ``sizes``: the first attempts that fit, int64 [B, 4]; bool [B], if any did."""
    tries = uniforms[:, : 2 * ATTEMPTS].reshape(-1, ATTEMPTS, 2)
    areas = sizes.prod(axis=1)[:, None] * (area[0] + (area[1] - area[0]) * tries[..., 0])
    ratios = np.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * tries[..., 1])
    extents = np.rint(np.sqrt(np.stack([areas * ratios, areas / ratios], axis=2))).astype(np.int64)
    fit = ((extents > 0) & (extents <= sizes[:, None])).all(axis=2)
    extents = extents[np.arange(len(sizes)), fit.argmax(axis=1)]
    corners = np.floor(uniforms[:, 2 * ATTEMPTS :] * (sizes - extents + 1)).astype(np.int64)
    return np.concatenate([corners, extents], axis=1), fit.any(axis=1)


def augment(
    images: Iterable[Tensor],  # uint8 [3, h, w], of any sizes
    augmentation: Augmentation,
    height: int,
    width: int,
) -> Tensor:
    """Augmented, normalised network input, float32 [B, 3, height, width].

    In this order: crop and resize, flip, rotation (what turns in from outside is black), colour, ImageNet
    normalisation, erasing to 0 (the mean colour). Brightness, contrast and saturation are linear and commute
    as long as nothing is clipped, so they are applied as one map, clipped once at the end. Images are taken one by one,
    and none is kept.
    """
    output = torch.empty(len(augmentation.crop), 3, height, width)
    step = max(1, CHUNK_PIXELS // (height * width))
    images = iter(images)
    for start in range(0, len(output), step):
        rows = slice(start, start + step)
        output[rows] = _augment_chunk(images, augmentation.select(rows), height, width)
    return output


def _augment_chunk(images: Iterator[Tensor], augmentation: Augmentation, height: int, width: int) -> Tensor:
    crops = augmentation.crop.tolist()
    resized = torch.empty(len(crops), 3, height, width, dtype=torch.uint8)
    for place, (top, left, h, w) in zip(resized, crops, strict=True):
        _resize_into(place, next(images)[:, top : top + h, left : left + w])
    batch = resized.float()
    batch = F.grid_sample(batch, _flip_rotation_grid(augmentation, height, width), align_corners=False)
    _jitter_(batch, augmentation)
    _normalize_(batch)
    for image, (top, left, h, w) in zip(batch, augmentation.erase.tolist(), strict=True):
        image[:, top : top + h, left : left + w] = 0
    return batch


def prepare(
    images: Sequence[Tensor],  # uint8 [3, h, w], of any sizes
    height: int,
    width: int,
) -> Tensor:
    """Resized, ImageNet-normalised network input for extraction, float32 [B, 3, height, width]."""
    batch = resize(images, height, width).float()
    _normalize_(batch)
    return batch


def resize(
    images: Sequence[Tensor],  # uint8 [3, h, w], of any sizes
    height: int,
    width: int,
) -> Tensor:
    """The images at one size, bilinear with antialiasing, uint8 [B, 3, height, width]."""
    batch = torch.empty(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in zip(batch, images, strict=True):
        _resize_into(place, image)
    return batch


def _resize_into(place: Tensor, image: Tensor) -> None:
    size = place.shape[1:]
    if image.shape[1:] != size:
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    place.copy_(image)


def _flip_rotation_grid(augmentation: Augmentation, height: int, width: int) -> Tensor:
    """For each pixel of the output its place in the input, float32 [B, height, width, 2] for grid_sample."""
    radians = torch.from_numpy(np.deg2rad(augmentation.angle)).float()[:, None, None]
    cos, sin = radians.cos(), radians.sin()
    sign = torch.from_numpy(np.where(augmentation.flip, -1.0, 1.0)).float()[:, None, None]
    x = ((torch.arange(width) + 0.5) * 2 / width - 1)[None, None, :]
    y = ((torch.arange(height) + 0.5) * 2 / height - 1)[None, :, None]
    # The coordinates run from -1 to 1 along either side, so a rotation has to go through pixels.
    grid = torch.empty(len(radians), height, width, 2)
    grid[..., 0] = sign * (cos * x - (height / width) * sin * y)
    grid[..., 1] = (width / height) * sin * x + cos * y
    return grid


def _jitter_(batch: Tensor, augmentation: Augmentation) -> None:
    """Brightness b, contrast c, saturation s, in place: b (c (s x + (1 - s) grey(x)) + (1 - c) mean grey)."""
    b, c, s = (
        torch.from_numpy(factor).float()[:, None, None]
        for factor in (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    )
    red, green, blue = batch.unbind(1)
    grey = (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    mean = grey.mean(dim=(1, 2), keepdim=True)
    added = grey.mul_(b * c * (1 - s)).add_(b * (1 - c) * mean)
    batch.mul_((b * c * s)[:, None]).add_(added[:, None]).clamp_(0, 255)


def _normalize_(batch: Tensor) -> None:
    """From 0..255 to ImageNet's mean 0 and standard deviation 1 a channel, in place."""
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    batch.sub_(255 * mean).div_(255 * std)
