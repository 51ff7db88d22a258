"""Sets of decoded images: pixels, the cache, and damaged files, named or left out with a count."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnet.data import ImageSet, decode_images, decoding
from snnet.data.image_set import ReIDDataset
from snnet.errors import UserError
from tests.snnet.few_images import SIZES, draw_images, pixels


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return draw_images(tmp_path)


@pytest.mark.parametrize("cache", ["auto", True, False])
def test_decoded_images_are_the_files_pixels(images: ImageSet, cache: bool) -> None:
    decoded = decode_images(images, cache=cache)
    assert len(decoded) == 7 and decoded.skipped == () and decoded.images.paths == images.paths
    assert decoded.sizes.tolist() == [list(size) for size in SIZES]
    assert (decoded.pixels is None) == (cache is False)
    for index, size in enumerate(SIZES):
        assert np.array_equal(decoded.image(index).permute(1, 2, 0).numpy(), pixels(index, size))


def test_auto_cache_keeps_to_its_share_of_memory(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(height * width * 3 for height, width in SIZES)
    monkeypatch.setattr(decoding, "free_memory", lambda device: 4 * total)
    assert decode_images(images).pixels.numel() == total
    monkeypatch.setattr(decoding, "free_memory", lambda device: 4 * total - 1)
    assert decode_images(images).pixels is None
    assert decode_images(images, cache=True).pixels.numel() == total


def test_free_memory_is_less_than_what_is_built_in() -> None:
    assert 2**20 < decoding.free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (8, 16), (255, 255, 255)).convert(mode).save(path)
    image = decode_images(ImageSet((str(path),), None, None)).image(0)
    assert image.shape == (3, 16, 8) and image.dtype == torch.uint8 and (image >= 254).all()


def damage(images: ImageSet, tmp_path: Path) -> ImageSet:
    """Replace three of the seven: a truncated JPEG, an empty file, text."""
    rng = np.random.default_rng(0)
    truncated = tmp_path / "truncated.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:1500])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    paths = list(images.paths)
    paths[1], paths[4], paths[5] = str(truncated), str(tmp_path / "empty.jpg"), str(tmp_path / "text.png")
    return ImageSet(tuple(paths), images.pids, images.cams)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (1, r"truncated\.jpg': image file is truncated"),
        (4, r"empty\.jpg': the file is empty"),
        (5, r"text\.png': not an image"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_a_damaged_image_is_named(
    images: ImageSet, tmp_path: Path, position: int, message: str, cache: bool
) -> None:
    damaged = damage(images, tmp_path).select(np.array([0, position, 6]))
    with pytest.raises(UserError, match=message) as raised:
        decode_images(damaged, cache=cache)
    assert "--skip-bad-images" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_named(images: ImageSet) -> None:
    Path(images.paths[2]).unlink()
    with pytest.raises(UserError, match=r"2\.png': No such file"):
        decode_images(images)


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_images_are_skipped_with_a_count(images: ImageSet, tmp_path: Path, cache: bool) -> None:
    damaged = damage(images, tmp_path)
    message = r"left out 3 of 7 images: .*truncated\.jpg': .*; .*empty\.jpg': .*; .*text\.png': [^;]*$"
    with pytest.warns(UserWarning, match=message):
        decoded = decode_images(damaged, skip_bad=True, cache=cache)
    kept = [0, 2, 3, 6]
    assert len(decoded.skipped) == 3
    assert all(damaged.paths[i] in str(why) for i, why in zip((1, 4, 5), decoded.skipped, strict=True))
    assert decoded.images.paths == tuple(images.paths[i] for i in kept)
    assert decoded.images.pids.tolist() == [0, 1, 1, 3] and decoded.images.cams.tolist() == [0, 2, 0, 0]
    for position, index in enumerate(kept):
        expected = pixels(index, SIZES[index])
        assert np.array_equal(decoded.image(position).permute(1, 2, 0).numpy(), expected)


def test_a_skipped_image_keeps_no_pixels(images: ImageSet, tmp_path: Path) -> None:
    def images_in_memory() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Image.Image) for thing in gc.get_objects())

    damaged, before = damage(images, tmp_path), images_in_memory()
    decoded = decode_images(damaged, skip_bad=True, tell_skipped=False)
    assert len(decoded.skipped) == 3 and images_in_memory() == before
    for error in decoded.skipped:
        assert error.__cause__ is error.__context__ is error.__traceback__ is None


def test_of_many_damaged_images_five_are_named(images: ImageSet, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"bad{number}.png").touch()
    bad = tuple(str(tmp_path / f"bad{number}.png") for number in range(8))
    with pytest.warns(UserWarning, match=r"left out 8 of 9 images: .*; and 3 more$") as warned:
        decode_images(ImageSet((*bad, images.paths[0]), None, None), skip_bad=True)
    text = str(warned[0].message)
    assert [f"bad{number}.png" in text for number in range(8)] == [True] * 5 + [False] * 3


def test_arguments_that_decode_images_cannot_use_are_named(images: ImageSet) -> None:
    with pytest.raises(UserError, match="cache must be 'auto', True or False, got 'off'"):
        decode_images(images, cache="off")  # type: ignore[arg-type]
    dataset = ReIDDataset("x", images, None, None)
    with pytest.raises(TypeError, match=r"images must be an ImageSet, .*\.train is, got ReIDDataset"):
        decode_images(dataset)  # type: ignore[arg-type]


def test_nothing_readable_is_an_error(images: ImageSet, tmp_path: Path) -> None:
    damaged = damage(images, tmp_path).select(np.array([1, 4, 5]))
    with pytest.raises(UserError, match="none of the 3 images can be read"):
        decode_images(damaged, skip_bad=True)


def test_sound_images_warn_of_nothing(images: ImageSet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(decode_images(images, skip_bad=True)) == 7
