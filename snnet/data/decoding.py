"""Every image of a split decoded once: checked for damage, and held in memory where it fits."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torch.utils.data import get_worker_info

from snnet.data.image_formats import readable_formats
from snnet.data.image_set import ImageSet
from snnet.data.transparency import BACKGROUND, on_background, transparent_grey
from snnet.errors import UserError
from snnet.system.cpus import available_cpus
from snnet.system.processes import processes_here
from snnet.system.progress import progress
from snnet_kernels.memory_size import free_memory

# cache="auto" holds a split's pixels if they take at most this share of the memory that is available.
MEMORY_SHARE = 1 / 4
# An image of more pixels is refused: frames of 8K cameras have half as many, and a crop a thousandth.
MOST_PIXELS = 1 << 26
# An image of more pixels is decoded when there is room for it beside what other threads and processes decode.
LARGE_PIXELS = 1 << 20
# The most that decoding holds at one time: the image as stored, as RGB and turned, and what the decoder keeps. WebP has
# been measured to take 29, AVIF and JPEG 2000 25, PNG and JPEG 18.
BYTES_PER_PIXEL = 32
_ROWS = 64  # of a 16-bit image, converted at a time
LISTED_IMAGES = 5  # of those left out, how many are named

# What sets an image of each EXIF orientation upright, and which of that swap height and width.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))

_decoding = threading.Condition()
_taken = 0  # bytes that large images take which are being decoded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """The readable images of a split at their native sizes, upright where EXIF or XMP says how they were taken.

    Of an image with several frames the first is taken. Transparent parts are black.

    Attributes:
        images: the files, without those left out.
        skipped: of each unreadable file that was left out, the error that names it.
        sizes: int64 [n, 2], height and width in pixels.
        pixels: uint8, all images end to end, each [height, width, 3]; None where they are read from disk at
            each access. One tensor, so that worker processes share it.
        starts: int64 [n], where in ``pixels`` each image begins.
    """

    images: ImageSet
    skipped: tuple[UserError, ...]
    sizes: np.ndarray
    pixels: Tensor | None
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def select(self, positions: range) -> DecodedImages:
        """These images, without copying their pixels."""
        chosen = np.array(positions, dtype=np.int64)
        return dataclasses.replace(
            self, images=self.images.select(chosen), sizes=self.sizes[chosen], starts=self.starts[chosen]
        )

    def image(self, index: int) -> Tensor:
        """The image of one index, uint8 [3, height, width] RGB; not to be written to.

        Raises:
            UserError: it is read from disk, and can no longer be.
        """
        if self.pixels is None:
            return load_image(self.images.paths[index])
        height, width = self.sizes[index].tolist()
        start = int(self.starts[index])
        return self.pixels[start : start + height * width * 3].view(height, width, 3).permute(2, 0, 1)


def decode_images(
    images: ImageSet,
    *,
    skip_bad: bool = False,
    cache: Literal["auto"] | bool = "auto",
    tell_skipped: bool = True,
) -> DecodedImages:
    """Open and fully decode every image once, on all cores.

    Args:
        images: the split.
        skip_bad: leave unreadable images out instead of raising; a warning counts them and names the first few.
        cache: whether to hold the pixels in memory; "auto": where they take at most a quarter of the memory that is
            available, which several processes on this machine share.
        tell_skipped: False leaves the warning, and the error where no image is left, to the caller
            (:func:`snnet.data.decoding.warn_of_skipped`).

    Raises:
        UserError: an image cannot be read or is truncated (the first is named), or none is left; another value
            of ``cache``.
        TypeError: ``images`` is no split.
    """
    if not isinstance(images, ImageSet):
        raise TypeError(f"images must be an ImageSet, as a dataset's .train is, got {type(images).__name__}")
    if cache not in ("auto", True, False):
        raise UserError(f"cache must be 'auto', True or False, got {cache!r}")
    with ThreadPoolExecutor(available_cpus()) as pool:
        images = _readable_styles(pool, images, skip_bad)
        # The headers give the sizes, so that all pixels can be decoded into one tensor of the right length.
        with warnings.catch_warnings():
            # _bounded refuses what it warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            headers = _map(pool, _attempt(image_size), images.paths)
            sizes = list(progress(headers, "reading headers", total=len(images), unit="image"))
        _raise_unless(skip_bad, sizes)
        lengths = np.array([0 if isinstance(size, UserError) else 3 * math.prod(size) for size in sizes])
        starts = np.cumsum(lengths) - lengths
        pixels = _allocate(int(lengths.sum()), cache)

        def decode(index: int) -> None:
            size = sizes[index]
            if isinstance(size, UserError):
                raise size
            decoded = _decode(images.paths[index])
            if decoded.shape[:2] != size:
                raise UserError(f"cannot read image {images.paths[index]!r}: its header gives another size")
            if pixels is not None:
                pixels[starts[index] : starts[index] + lengths[index]] = torch.from_numpy(decoded.reshape(-1))

        failures: list[UserError | None] = []
        results = _map(pool, _attempt(decode), range(len(images)))
        for failure in progress(results, "decoding", total=len(images), unit="image"):
            _raise_unless(skip_bad, [failure])
            failures.append(failure)
    decoded = _without_failures(images, failures, sizes, pixels, starts)
    if tell_skipped:
        warn_of_skipped(decoded.skipped, len(images))
    return decoded


def _readable_styles(pool: ThreadPoolExecutor, images: ImageSet, skip_bad: bool) -> ImageSet:
    """The images with those of their CamStyle files that can be decoded; they are read again when used."""
    if images.styles is None:
        return images
    files = [file for styles in images.styles for file in styles]
    bad: dict[str, UserError] = {}
    failures = progress(
        _map(pool, _attempt(_decode), files), "decoding CamStyle images", total=len(files), unit="image"
    )
    for file, failure in zip(files, failures, strict=True):
        _raise_unless(skip_bad, [failure])
        if isinstance(failure, UserError):
            bad[file] = failure
    if not bad:
        return images
    message = f"left out {len(bad)} of {len(files)} CamStyle images: {_listing(list(bad.values()))}"
    warnings.warn(message, stacklevel=3)
    kept = tuple(tuple(file for file in styles if file not in bad) for styles in images.styles)
    return dataclasses.replace(images, styles=kept)


def _without_failures(
    images: ImageSet,
    failures: Sequence[UserError | None],
    sizes: Sequence[tuple[int, int] | UserError],
    pixels: Tensor | None,
    starts: np.ndarray,
) -> DecodedImages:
    keep = np.array([failure is None for failure in failures], dtype=bool)
    skipped = tuple(failure for failure in failures if failure is not None)
    kept_sizes = np.array([size for size, kept in zip(sizes, keep, strict=True) if kept], dtype=np.int64)
    return DecodedImages(images.select(keep), skipped, kept_sizes.reshape(-1, 2), pixels, starts[keep])


def warn_of_skipped(skipped: Sequence[UserError], number: int) -> None:
    """Warn of the files that were left out of ``number`` images; :class:`UserError` where no image is left."""
    if not skipped:
        return
    reasons = _listing(skipped)
    if len(skipped) == number:
        raise UserError(f"none of the {number} images can be read: {reasons}")
    warnings.warn(f"left out {len(skipped)} of {number} images: {reasons}", stacklevel=3)


def _listing(reasons: Sequence[UserError]) -> str:
    more = len(reasons) - LISTED_IMAGES
    shown = [str(reason) for reason in reasons[:LISTED_IMAGES]]
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)


def load_image(path: str) -> Tensor:
    """One image file, uint8 [3, height, width] RGB; raises :class:`UserError` naming it if it is damaged.

    An image of more than ``MOST_PIXELS`` pixels, or one that takes more memory to decode than is free, is an error too.
    Half of the free memory is shared by the processes of a command, those of a loader included. Threads of a process
    that decode at the same time take at most its share together. A process decodes an image that takes more while none
    of its other threads decodes a large one.
    """
    return torch.from_numpy(_decode(path)).permute(2, 0, 1)


def _decode(path: str) -> np.ndarray:
    with _open(path) as image:
        if image.width * image.height <= LARGE_PIXELS:
            return _naming(path, lambda: _upright_rgb(image))
        return _naming(path, lambda: _in_turn(image))


def _in_turn(image: Image.Image) -> np.ndarray:
    """:func:`_upright_rgb` of a large image, once there is room; ValueError if it takes more memory than is free."""
    global _taken
    pixels = image.width * image.height
    needed = BYTES_PER_PIXEL * pixels
    loader = get_worker_info()
    processes = processes_here() * (1 if loader is None else loader.num_workers)
    share = free_memory(torch.device("cpu")) // (2 * processes)
    with _decoding:
        _decoding.wait_for(lambda: _taken == 0 or _taken + needed <= share)
        _taken += needed
    try:
        if needed > share and needed > (free := free_memory(torch.device("cpu"))):
            raise ValueError(
                f"{pixels:,} pixels take {needed / 2**30:.1f} GiB to decode of the {free / 2**30:.1f} that are free"
            )
        return _upright_rgb(image)
    finally:
        with _decoding:
            _taken -= needed
            _decoding.notify_all()


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """The pixels, uint8 [height, width, 3], turned as EXIF or XMP says, on black where they are transparent.

    Of several frames the first one.
    """
    turn = None if isinstance(image, TiffImageFile) else _TURNS.get(_orientation(image))  # Pillow turns TIFFs
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    elif image.mode == "F":
        raise ValueError("its mode F (floating point grey) has no defined white")
    image = on_background(image)
    return np.array(image if turn is None else image.transpose(turn))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8; Pillow itself would keep values below 256 and make the rest white.

    Pillow opens some files of 16 bits in mode I, of 32 bits: this mode is taken for 16 bits.
    """
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError(
            f"its mode {image.mode} has values from {grey.min()} to {grey.max()}, needed are 0 to {0xFFFF}"
        )
    eight_bit = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), _ROWS):
        rows = slice(start, start + _ROWS)
        eight_bit[rows] = (grey[rows].astype(np.int32) + 128) // 257
    hidden = transparent_grey(image, grey)
    if hidden is not None:
        eight_bit[hidden] = BACKGROUND[0]
    return Image.fromarray(eight_bit)


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image file, from its header, as :func:`load_image` turns it."""
    with _open(path) as image:
        # Where a TIFF has the tag, Pillow has swapped its sides; where it has XMP alone, they are swapped later.
        is_swapped = isinstance(image, TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2
        swap = not is_swapped and _TURNS.get(_orientation(image)) in _SWAP_SIDES
        return (image.width, image.height) if swap else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how the camera was held, 1 (upright) where none can be read.

    It may stand in EXIF data or in XMP. Only the header is read: a PNG may have EXIF data behind its pixels, but only
    decoding would reach them.
    """
    try:
        # Not image.getexif: that of PNG decodes.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    # Damage there can raise nearly anything, and takes nothing from the pixels.
    except Exception:
        return 1


def _open(path: str) -> ImageFile.ImageFile:
    return _naming(path, lambda: _bounded(Image.open(path, formats=readable_formats())))


def _bounded(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """``image``, unless its header says that it is larger than any that is read."""
    if image.width * image.height > MOST_PIXELS:
        with image:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS:,} that are read"
            )
    # Pillow maps a file that it can name, and takes the rows of a turned TIFF for those of the upright image.
    image.filename = ""
    return image


def _naming(path: str, read: Callable[[], Result]) -> Result:
    """``read()``, its failures turned into a :class:`UserError` that names the file and the reason."""
    try:
        return read()
    except MemoryError:
        raise
    # Decoders meet damage with many kinds of exception: OSError, SyntaxError, struct.error, zlib.error ...
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif os.path.exists(path) and os.path.getsize(path) == 0:
            reason = "the file is empty"
        elif isinstance(error, UnidentifiedImageError):
            reason = "not an image, or its header is damaged"
        else:
            reason = str(error) or type(error).__name__
        raise UserError(f"cannot read image {path!r}: {reason}") from error


def _attempt(function: Callable[[Item], Result]) -> Callable[[Item], Result | UserError]:
    """``function`` returning the :class:`UserError` that it would raise, without the pixels that its cause holds."""

    def attempt(item: Item) -> Result | UserError:
        try:
            return function(item)
        except UserError as error:
            return UserError(*error.args)

    return attempt


def _raise_unless(skip_bad: bool, results: Sequence[object]) -> None:
    """Raise the first of ``results`` that is an error, unless bad images are to be skipped."""
    for result in results:
        if isinstance(result, UserError) and not skip_bad:
            raise UserError(f"{result} (repair or remove it, or skip such files with --skip-bad-images)")


def _map(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    """``pool.map`` in order, a few hundred items at a time, so that an error stops it soon."""
    for start in range(0, len(items), 512):
        yield from pool.map(function, items[start : start + 512])


def _allocate(size: int, cache: Literal["auto"] | bool) -> Tensor | None:
    """A uint8 tensor of ``size`` bytes, or None where the pixels are not to be held."""
    free = free_memory(torch.device("cpu"))
    if not cache or (cache == "auto" and size * processes_here() > MEMORY_SHARE * free):
        return None
    if size > free:
        raise UserError(
            f"--image-cache on: all images decoded take {size / 2**30:.1f} GiB of the {free / 2**30:.1f} that are free"
        )
    return torch.empty(size, dtype=torch.uint8)
