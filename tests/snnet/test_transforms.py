"""The batched augmentation against torchvision's image-by-image operations, and what it draws."""

from __future__ import annotations

import math

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from snnet.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNIFORMS,
    Augmentation,
    augment,
    draw_augmentation,
    prepare,
)


def smooth_images(count: int, height: int, width: int) -> list[torch.Tensor]:
    """Different gradients a channel, without the extremes at which a clip between operations would show."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None, :]
    channels = torch.stack([y.expand(height, width), x.expand(height, width), (y + x) / 2])
    return [(60 + (100 - 5 * i) * channels.roll(i, 0)).round().to(torch.uint8) for i in range(count)]


def unchanged(count: int, height: int, width: int, **changes: np.ndarray) -> Augmentation:
    """An augmentation that changes nothing, but for ``changes``."""
    ones = np.ones(count)
    parameters = {
        "crop": np.tile([0, 0, height, width], (count, 1)),
        "flip": np.zeros(count, bool),
        "angle": np.zeros(count),
        "brightness": ones,
        "contrast": ones,
        "saturation": ones,
        "erase": np.zeros((count, 4), np.int64),
    }
    return Augmentation(**{**parameters, **changes})


def to_bytes(batch: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: 0..255."""
    return 255 * (
        batch * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    )


def draw(
    count: int, native: tuple[int, int] = (128, 64), height: int = 256, width: int = 128
) -> Augmentation:
    uniforms = np.random.default_rng(5).random((count, UNIFORMS))
    return draw_augmentation(uniforms, np.tile(native, (count, 1)), height, width)


def test_prepare_normalises_a_constant_image_exactly() -> None:
    image = torch.tensor([255, 0, 128], dtype=torch.uint8)[:, None, None].expand(3, 40, 30)
    batch = prepare([image, image], 16, 8)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert batch.shape == (2, 3, 16, 8) and batch.dtype == torch.float32
    for channel, value in enumerate(expected):
        torch.testing.assert_close(batch[:, channel], torch.full((2, 16, 8), value), rtol=1e-6, atol=1e-6)


def test_prepare_resizes_mixed_sizes_as_torchvision_does() -> None:
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((60, 31), (16, 8), (9, 20))]
    for ours, image in zip(to_bytes(prepare(images, 16, 8)), images, strict=True):
        expected = TF.resize(image, [16, 8], InterpolationMode.BILINEAR, antialias=True).float()
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_augment_without_changes_is_prepare() -> None:
    images = smooth_images(3, 32, 16)
    augmented = augment(images, unchanged(3, 32, 16), 64, 32)
    torch.testing.assert_close(augmented, prepare(images, 64, 32), rtol=0, atol=1e-4)


def test_crop_and_flip_are_torchvisions() -> None:
    images = smooth_images(2, 48, 24)
    crop = np.array([[3, 2, 40, 18], [5, 0, 30, 24]])
    augmented = augment(images, unchanged(2, 48, 24, crop=crop, flip=np.array([True, False])), 64, 32)
    boxes = zip(images, crop.tolist(), strict=True)
    expected = [TF.resized_crop(image, *box, [64, 32]) for image, box in boxes]
    expected[0] = TF.hflip(expected[0])
    torch.testing.assert_close(to_bytes(augmented), torch.stack(expected).float(), rtol=0, atol=0.01)


def test_rotation_is_torchvisions_with_black_outside() -> None:
    images = smooth_images(2, 64, 32)
    angle = np.array([9.0, -4.5])
    augmented = to_bytes(augment(images, unchanged(2, 64, 32, angle=angle), 64, 32))
    for ours, image, degrees in zip(augmented, images, angle, strict=True):
        expected = TF.rotate(image.float(), degrees, InterpolationMode.BILINEAR)
        difference = (ours - expected).abs()
        # Along the border the two differ in how they blend with the outside.
        assert difference.quantile(0.9) < 0.01
        torch.testing.assert_close(ours[:, 12:-12, 8:-8], expected[:, 12:-12, 8:-8], rtol=0, atol=0.01)
    assert augmented[0, :, 0, 0].abs().max() < 0.01


def test_flip_comes_before_rotation() -> None:
    images = smooth_images(1, 64, 32)
    parameters = unchanged(1, 64, 32, angle=np.array([8.0]), flip=np.array([True]))
    expected = TF.rotate(TF.hflip(images[0].float()), 8.0, InterpolationMode.BILINEAR)
    ours = to_bytes(augment(images, parameters, 64, 32))[0]
    torch.testing.assert_close(ours[:, 12:-12, 8:-8], expected[:, 12:-12, 8:-8], rtol=0, atol=0.01)


def test_colour_jitter_is_torchvisions_in_any_order() -> None:
    images = smooth_images(2, 64, 32)
    brightness, contrast, saturation = np.array([1.2, 0.85]), np.array([0.8, 1.15]), np.array([1.2, 0.8])
    parameters = unchanged(2, 64, 32, brightness=brightness, contrast=contrast, saturation=saturation)
    augmented = to_bytes(augment(images, parameters, 64, 32)) / 255
    for i, image in enumerate(images):
        x = image.float() / 255
        one = TF.adjust_contrast(TF.adjust_brightness(x, brightness[i]), contrast[i])
        one = TF.adjust_saturation(one, saturation[i])
        two = TF.adjust_contrast(TF.adjust_saturation(x, saturation[i]), contrast[i])
        two = TF.adjust_brightness(two, brightness[i])
        torch.testing.assert_close(augmented[i], one, rtol=0, atol=1e-3)
        torch.testing.assert_close(augmented[i], two, rtol=0, atol=1e-3)


def test_colours_are_clipped_to_what_an_image_can_hold() -> None:
    image = torch.full((3, 8, 4), 250, dtype=torch.uint8)
    augmented = to_bytes(augment([image], unchanged(1, 8, 4, brightness=np.array([1.2])), 8, 4))
    torch.testing.assert_close(augmented, torch.full((1, 3, 8, 4), 255.0), rtol=0, atol=1e-3)


def test_erasing_sets_exactly_the_rectangle_to_zero() -> None:
    images = [torch.full((3, 32, 16), 200, dtype=torch.uint8)] * 2
    erase = np.array([[4, 2, 10, 5], [0, 0, 0, 0]])
    augmented = augment(images, unchanged(2, 32, 16, erase=erase), 32, 16)
    assert (augmented[0] == 0).all(0).sum() == 50
    assert (augmented[0, :, 4:14, 2:7] == 0).all()
    assert (augmented[1] != 0).all()


def test_long_batches_are_treated_image_by_image_alike() -> None:
    images = smooth_images(7, 40, 20)
    parameters = draw(7, native=(40, 20), height=256, width=128)
    whole = augment(images, parameters, 256, 128)
    for i, image in enumerate(images):
        single = augment([image], parameters.select(slice(i, i + 1)), 256, 128)[0]
        torch.testing.assert_close(whole[i], single, rtol=0, atol=1e-5)


def test_drawn_crops_have_the_stated_area_and_ratio() -> None:
    drawn = draw(4000)
    top, left, height, width = drawn.crop.T
    area = height * width / (128 * 64)
    ratio = height / width
    assert area.min() > 0.62 and area.max() <= 1.0
    assert ratio.min() > 1.95 and ratio.max() < 3.08
    assert min(top.min(), left.min()) == 0 and (top + height).max() == 128 and (left + width).max() == 64
    assert np.unique(top).size > 10 and np.unique(left).size > 10
    # A large area fits only with a ratio near the image's own, so small ones are the more frequent.
    assert 0.70 < area.mean() < 0.80


def test_crop_ratio_follows_the_input_for_other_shapes() -> None:
    square = draw(1000, native=(100, 100), height=64, width=64)
    ratio = square.crop[:, 2] / square.crop[:, 3]
    assert ratio.min() > 0.97 and ratio.max() < 1.54


def test_the_whole_image_is_taken_where_no_crop_fits() -> None:
    for native in ((20, 100), (100, 100), (60, 120), (100, 10), (1, 1)):
        assert draw(3, native=native).crop.tolist() == [[0, 0, *native]] * 3


def test_crops_of_unusual_shape_keep_the_stated_area() -> None:
    for native in ((128, 100), (150, 100), (300, 100), (400, 100)):
        area = draw(2000, native=native).crop[:, 2:].prod(axis=1) / math.prod(native)
        assert 0.62 < area.min() < 0.7 and area.max() <= 1.0


def test_drawn_flips_angles_and_colours() -> None:
    drawn = draw(4000)
    assert abs(drawn.flip.mean() - 0.5) < 0.03
    assert -10 <= drawn.angle.min() < -9.9 and 9.9 < drawn.angle.max() <= 10
    assert abs(drawn.angle.mean()) < 0.4 and abs(drawn.angle.std() - 20 / math.sqrt(12)) < 0.2
    factors = np.stack([drawn.brightness, drawn.contrast, drawn.saturation])
    assert 0.8 <= factors.min() < 0.801 and 1.199 < factors.max() <= 1.2
    assert np.abs(factors.mean(axis=1) - 1).max() < 0.01
    assert np.abs(np.corrcoef(factors) - np.eye(3)).max() < 0.06


def test_drawn_erasing_hits_half_the_images_with_the_stated_area_and_ratio() -> None:
    drawn = draw(4000)
    erased = drawn.erase[:, 2] > 0
    assert abs(erased.mean() - 0.5) < 0.03
    top, left, height, width = drawn.erase[erased].T
    area = height * width / (256 * 128)
    assert 0.019 < area.min() < 0.025 and 0.31 < area.max() < 0.335
    assert 0.155 < area.mean() < 0.18
    assert (top + height <= 256).all() and (left + width <= 128).all()
    ratio = height / width
    assert ratio.min() > 0.28 and 3.0 < ratio.max() < 3.4
    assert (drawn.erase[~erased] == 0).all()
