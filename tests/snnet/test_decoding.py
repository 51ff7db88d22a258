"""Image files of every kind become upright 8-bit RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnet.data import ImageSet, build_dataset, decode_images
from snnet.errors import UserError


def load_one(path: Path) -> np.ndarray:
    """The image by itself, uint8 [height, width, 3]; what is read at each access is the same as what is held."""
    held, read = (decode_images(ImageSet((str(path),), None, None), cache=cache) for cache in (True, False))
    assert torch.equal(held.image(0), read.image(0)) and tuple(held.sizes[0]) == held.image(0).shape[1:]
    return held.image(0).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")]
)
def test_sixteen_bit_grey_becomes_its_eight_bit_equivalent(tmp_path: Path, suffix: str, dtype: str) -> None:
    grey = np.arange(256).reshape(32, 8)
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray((257 * grey).astype(dtype)).save(path)
    assert np.array_equal(load_one(path), np.repeat(grey[:, :, None], 3, axis=2))
    # What lies between goes to the nearest: 128 of 257 down, 129 up.
    Image.fromarray(np.full((32, 8), 128).astype(dtype)).save(path)
    assert load_one(path).max() == 0
    Image.fromarray(np.full((32, 8), 129).astype(dtype)).save(path)
    assert load_one(path).min() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 4), 0.5, np.float32), "its mode F "),
        (
            np.full((8, 4), 65536, np.int32),
            "its mode I has values from 65536 to 65536, needed are 0 to 65535",
        ),
        (np.full((8, 4), -1, np.int32), "its mode I has values from -1 to -1"),
    ],
)
def test_numbers_without_a_white_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"x\.tif': {message}"):
        decode_images(ImageSet((str(tmp_path / "x.tif"),), None, None))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    # Four corners of four greys, which a lossy format keeps apart.
    stored = np.kron([[0, 80], [160, 240]], np.ones((16, 8))).astype(np.uint8)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored[::-1].T,  # the camera's top lies to the right: a quarter clockwise
        7: stored[::-1, ::-1].T,
        8: stored[:, ::-1].T,
    }[orientation]
    path = tmp_path / f"x.{suffix}"
    image = Image.fromarray(np.repeat(stored[:, :, None], 3, axis=2))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found = load_one(path)
    assert found.shape == (*upright.shape, 3)
    assert np.abs(found[:, :, 1].astype(int) - upright).max() <= (16 if suffix == "jpg" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0not a table", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"])
def test_damaged_exif_data_take_nothing_from_the_pixels(tmp_path: Path, exif: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of the table
        assert np.array_equal(load_one(tmp_path / "x.png"), pixels)


def test_every_format_is_found_and_decoded(tmp_path: Path) -> None:
    suffixes = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
    for place, suffix in enumerate(suffixes):
        Image.new("L", (4, 8), 30 * place).save(tmp_path / f"x.{suffix}")
    images = build_dataset("folder", str(tmp_path)).train
    assert [Path(path).name for path in images.paths] == [f"x.{suffix}" for suffix in suffixes]
    decoded = decode_images(images)
    for place in range(len(suffixes)):
        assert (decoded.image(place).int() - 30 * place).abs().max() <= 2
