"""Image files of every kind become upright 8-bit RGB."""

from __future__ import annotations

import multiprocessing
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from snnet.data import ImageSet, build_dataset, decode_images, decoding, extraction_loader, loading
from snnet.data.image_formats import is_readable, readable_formats
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


# Four corners of four greys, which a lossy format keeps apart, as they are stored in a photo of each orientation.
CORNERS = np.kron([[0, 80], [160, 240]], np.ones((16, 8))).astype(np.uint8)
UPRIGHT = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.T,
    6: CORNERS[::-1].T,  # the camera's top lies to the right: a quarter clockwise
    7: CORNERS[::-1, ::-1].T,
    8: CORNERS[:, ::-1].T,
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x.{suffix}"
    image = Image.fromarray(np.repeat(CORNERS[:, :, None], 3, axis=2))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found, upright = load_one(path), UPRIGHT[orientation]
    assert found.shape == (*upright.shape, 3)
    assert np.abs(found[:, :, 1].astype(int) - upright).max() <= (16 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["png profile", "png XMP", "jpg XMP", "tif XMP"])
def test_the_orientation_may_stand_elsewhere(tmp_path: Path, place: str, orientation: int) -> None:
    """In a text of a PNG, where ImageMagick puts EXIF data, or in XMP."""
    suffix, kind = place.split()
    path, image, texts = tmp_path / f"x.{suffix}", Image.fromarray(CORNERS), PngInfo()
    exif, xmp = (
        image.getexif(),
        f'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>',
    )
    exif[0x0112] = orientation
    profile = exif.tobytes()
    if kind == "profile":
        texts.add_text("Raw profile type exif", f"\nexif\n{len(profile):8d}\n{profile.hex()}\n", zip=True)
    else:
        texts.add_itxt("XML:com.adobe.xmp", xmp)
    options: dict[str, dict[str, Any]] = {
        "png": {"pnginfo": texts},
        "jpg": {"xmp": xmp.encode(), "quality": 95},
        "tif": {"tiffinfo": {700: xmp.encode()}},
    }
    image.save(path, **options[suffix])
    found, upright = load_one(path), UPRIGHT[orientation]
    assert found.shape == (*upright.shape, 3)
    assert np.abs(found[:, :, 1].astype(int) - upright).max() <= (16 if suffix == "jpg" else 0)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_tiffs_of_every_kind_of_pixels_are_turned(tmp_path: Path, mode: str, compression: str | None) -> None:
    if mode == "I;16":
        image = Image.fromarray(257 * CORNERS.astype(np.uint16))
    else:
        image = Image.fromarray(CORNERS).convert(mode)
    for orientation, upright in UPRIGHT.items():
        path = tmp_path / f"{orientation}.tif"
        image.save(path, tiffinfo={0x0112: orientation}, compression=compression)
        assert np.array_equal(load_one(path), np.repeat(upright[:, :, None], 3, axis=2))


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


def test_every_ending_that_pillow_reads_is_found_and_decoded(tmp_path: Path) -> None:
    endings = ["JFIF", "jpe", "apng", "ppm", "pcx", "tga", "dib", "jpg.JPG", "jp2", "avif"]
    endings = [ending for ending in endings if is_readable(f"x.{ending}")]
    assert len(endings) >= 8  # jp2 and avif are as Pillow was built
    for place, ending in enumerate(endings):
        kind = Image.registered_extensions()["." + ending.lower().split(".")[-1]]
        Image.new("RGB", (16, 32), (20 * place,) * 3).save(tmp_path / f"{place:02d}.{ending}", kind)
    decoded = decode_images(build_dataset("folder", str(tmp_path)).train)
    assert [Path(path).name for path in decoded.images.paths] == [
        f"{place:02d}.{ending}" for place, ending in enumerate(endings)
    ]
    for place in range(len(endings)):
        assert (decoded.image(place).int() - 20 * place).abs().max() <= 3


# What Pillow would hand to another program, or tells by the header and cannot decode.
@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 8\n", b"\x89HDF\r\n\x1a\n"]
)
def test_formats_of_other_programs_are_not_opened(tmp_path: Path, content: bytes) -> None:
    assert {"JPEG", "PNG", "TIFF"} <= set(readable_formats()) and not {
        "EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF", "ICO", "ICNS", "IPTC", "BLP"
    } & set(readable_formats())  # fmt: skip
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.jpg': not an image, or its header is damaged"):
        decode_images(ImageSet((str(tmp_path / "x.jpg"),), None, None))


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "BLP"])
def test_files_that_hold_a_file_of_another_format_are_not_opened(tmp_path: Path, kind: str) -> None:
    Image.new("P", (32, 32)).save(tmp_path / "x.png", kind)
    with pytest.raises(UserError, match=r"x\.png': not an image, or its header is damaged"):
        decode_images(ImageSet((str(tmp_path / "x.png"),), None, None))


def test_links_that_lead_nowhere_and_empty_files_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (16, 32)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    (tmp_path / "c.png").symlink_to("c.png")
    (tmp_path / "d.png").touch()
    with pytest.warns(
        UserWarning, match="left out 3 of 4 images: .*No such file.*; .*symbolic.*; .*is empty"
    ):
        decoded = decode_images(build_dataset("folder", str(tmp_path)).train, skip_bad=True)
    assert [Path(path).name for path in decoded.images.paths] == ["a.png"]


def _on_black(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(colours * (alpha / 255.0)).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_colour_under_transparency_does_not_count(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(0)
    alpha = np.array([0, 255, 77, 200], np.uint8).repeat(16).reshape(16, 4, 1)
    seen = random.integers(0, 256, (16, 4, 3), dtype=np.uint8)
    found = []
    for number, unseen in enumerate((0, 255)):
        colours = np.where(alpha == 0, unseen, seen).astype(np.uint8)
        path = tmp_path / f"{number}.{suffix}"
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(path, **options)
        found.append(load_one(path))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], _on_black(seen, alpha))


def test_every_kind_of_transparency_is_on_black(tmp_path: Path) -> None:
    grey = np.arange(0, 256, 8, dtype=np.uint8).reshape(8, 4)
    alpha = np.where(grey % 3 == 0, 0, 255).astype(np.uint8)
    two = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    palette = Image.fromarray(grey // 8)
    palette = palette.convert("P")
    palette.putpalette([value for place in range(256) for value in (place, 255 - place, 7)])
    colours = np.stack([grey // 8, 255 - grey // 8, np.full_like(grey, 7)], axis=2)
    hidden = grey // 8 == 5
    cases = {
        "la.png": (two, {}, _on_black(np.repeat(grey[:, :, None], 3, 2), alpha[:, :, None])),
        "entry.png": (palette, {"transparency": 5}, np.where(hidden[:, :, None], 0, colours)),
        "bytes.png": (
            palette,
            {"transparency": bytes([255, 0, 128] + [255] * 253)},
            _on_black(colours, np.array([255, 0, 128] + [255] * 253)[grey // 8][:, :, None]),
        ),
        "entry.gif": (palette, {"transparency": 5}, np.where(hidden[:, :, None], 0, colours)),
        "grey.png": (Image.fromarray(grey), {"transparency": 40}, np.where(hidden, 0, grey)[:, :, None]),
        "rgb.png": (
            Image.fromarray(colours),
            {"transparency": (5, 250, 7)},
            np.where(hidden[:, :, None], 0, colours),
        ),
        "sixteen.png": (
            Image.fromarray(grey.astype("<u2") * 257),
            {"transparency": 40 * 257},
            np.where(hidden, 0, grey)[:, :, None],
        ),
    }
    for name, (image, options, expected) in cases.items():
        image.save(tmp_path / name, **options)
        found = load_one(tmp_path / name)
        assert np.array_equal(found, np.broadcast_to(expected, found.shape)), name


@pytest.mark.parametrize(
    ("depth", "kind", "row", "marked", "expected"),
    [
        (1, 0, bytes([0b10100000]), (1,), [[0] * 3, [0] * 3, [0] * 3, [0] * 3]),
        (2, 0, bytes([0b11011000]), (3,), [[0] * 3, [85] * 3, [170] * 3, [0] * 3]),
        (4, 0, bytes([0xF1, 0x2F]), (15,), [[0] * 3, [17] * 3, [34] * 3, [0] * 3]),
        (
            16,
            2,
            b"\x12\x34\x56\x78\x9a\xbc" + b"\x12\x34\x56\x78\xff\xff" + b"\1\0\2\0\3\0" + b"\0" * 6,
            (0x1234, 0x5678, 0x9ABC),
            [[0, 0, 0], [0x12, 0x56, 0xFF], [1, 2, 3], [0, 0, 0]],
        ),
        (
            16,
            4,
            b"\x80\0\xff\xff" + b"\x80\0\0\0" + b"\xff\xff\xff\xff" + b"\x40\0\xff\xff",
            None,
            [[0x80] * 3, [0] * 3, [0xFF] * 3, [0x40] * 3],
        ),
        (
            16,
            6,
            b"\x80\0\x10\0\x20\0\xff\xff" + b"\x80\0\x10\0\x20\0\0\0" + b"\xff" * 8 + b"\0" * 8,
            None,
            [[0x80, 0x10, 0x20], [0] * 3, [0xFF] * 3, [0] * 3],
        ),
    ],
)
def test_png_of_every_depth(
    tmp_path: Path,
    depth: int,
    kind: int,
    row: bytes,
    marked: tuple[int, ...] | None,
    expected: list[list[int]],
) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0))
    if marked is not None:
        content += chunk(b"tRNS", struct.pack(f">{len(marked)}H", *marked))
    content += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    assert load_one(tmp_path / "x.png").tolist() == [expected]


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp", "avif"])
def test_of_several_frames_the_first_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 32), (shade,) * 3) for shade in (50, 200)]
    path = tmp_path / f"x.{suffix}"
    if Image.registered_extensions().get(f".{suffix}") not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow writes no frames of .{suffix}")
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.abs(load_one(path).astype(int) - 50).max() <= 2


def test_images_are_bounded_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding.MOST_PIXELS == 67_108_864
    monkeypatch.setattr(decoding, "MOST_PIXELS", 8 * 4)
    Image.new("L", (4, 8)).save(tmp_path / "x.png")
    assert load_one(tmp_path / "x.png").shape == (8, 4, 3)
    Image.new("L", (11, 3)).save(tmp_path / "x.png")
    for read in (lambda path: decode_images(ImageSet((path,), None, None)), decoding.load_image):
        with pytest.raises(UserError, match=r"x.png': 11 x 3 pixels are more than the 32 that are read"):
            read(str(tmp_path / "x.png"))


@pytest.mark.parametrize(("room", "at_once"), [(3, 3), (1, 1), (0.75, 1)])
def test_large_images_are_decoded_while_half_of_the_free_memory_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: float, at_once: int
) -> None:
    """``room`` of images of 32 pixels in that half; one that does not fit is decoded alone."""
    paths = [str(tmp_path / f"{index}.png") for index in range(6)]
    for path in paths:
        Image.new("L", (4, 8)).save(path)
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 31)
    monkeypatch.setattr(decoding, "available_cpus", lambda: 6)
    monkeypatch.setattr(decoding, "free_memory", lambda device: int(2 * room * 32 * 32))
    together = threading.Barrier(at_once)
    lock, begun = threading.Lock(), 0
    seen: list[int] = []
    original = decoding._upright_rgb

    def watched(image: Image.Image) -> np.ndarray:
        nonlocal begun
        with lock:
            begun += 1
            seen.append(begun)
        together.wait(30)
        with lock:
            begun -= 1
        together.wait(30)
        return original(image)

    monkeypatch.setattr(decoding, "_upright_rgb", watched)
    assert len(decode_images(ImageSet(tuple(paths), None, None))) == 6
    assert max(seen) == at_once and len(seen) == 6
    monkeypatch.setattr(decoding, "_upright_rgb", lambda image: 1 / 0)
    with pytest.raises(UserError, match="division by zero"):
        decoding.load_image(paths[0])
    assert decoding._taken == 0  # an error gives its room back


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_processes_of_a_loader_share_that_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two workers may take a quarter: two images of 32 pixels at a time, and not a third."""
    paths = [str(tmp_path / f"{index}.png") for index in range(6)]
    for path in paths:
        Image.new("L", (4, 8)).save(path)
    decoded = decode_images(ImageSet(tuple(paths), None, None), cache=False)
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 31)
    monkeypatch.setattr(loading, "available_cpus", lambda: 2)
    monkeypatch.setattr(decoding, "free_memory", lambda device: 2 * 2 * 2 * 32 * 32)
    shares = multiprocessing.SimpleQueue()
    original = decoding._decoding.wait_for

    def watched(has_room: Callable[[], bool]) -> bool:
        taken, decoding._taken = decoding._taken, 32 * 32
        one_more = has_room()
        decoding._taken = 2 * 32 * 32
        shares.put((one_more, has_room()))
        decoding._taken = taken
        return original(has_room)

    monkeypatch.setattr(decoding._decoding, "wait_for", watched)
    assert len(list(extraction_loader(decoded, height=8, width=4, batch_size=1, workers=2))) == 6
    assert {shares.get() for _ in paths} == {(True, False)}


def test_a_large_image_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("I;16", (4, 8), 257 * 9).save(tmp_path / "x.png")
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 31)
    monkeypatch.setattr(decoding, "free_memory", lambda device: 32 * 32)
    assert load_one(tmp_path / "x.png").tolist() == [[[9] * 3] * 4] * 8
    monkeypatch.setattr(decoding, "free_memory", lambda device: 32 * 32 - 1)
    with pytest.raises(UserError, match=r"x.png': 32 pixels take 0.0 GiB to decode of the 0.0 that are free"):
        decoding.load_image(str(tmp_path / "x.png"))
    monkeypatch.setattr(decoding, "free_memory", lambda device: 95)
    with pytest.raises(UserError, match="--image-cache on: all images decoded take"):
        decode_images(ImageSet((str(tmp_path / "x.png"),), None, None), cache=True)
