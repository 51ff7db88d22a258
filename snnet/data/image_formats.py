"""Which files are images: what Pillow on this machine reads, and what only looks like one."""

from __future__ import annotations

import functools
import mimetypes
import os
import re

from PIL import Image, ImageFile, features

# EPS runs another program on the file. MPEG is told by its header alone. The others hold a file of another format. Its
# size may differ from the size in their header; Pillow even decodes an ICO before it tells any size.
_NOT_DECODED = ("EPS", "MPEG", "ICO", "ICNS", "IPTC", "BLP")
# Formats that Pillow registers whether or not its library was built in.
_LIBRARIES = {"JPEG": "jpg", "JPEG2000": "jpg_2000", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif"}
# Images that Python's table of media types, in some version that is supported, does not know.
_OTHER_IMAGES = (
    ".heic", ".heif", ".avif", ".webp", ".jxl", ".jxr", ".jp2", ".svg", ".eps", ".wmf", ".emf",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".ico", ".icns", ".iim", ".blp",
)  # fmt: skip
_MEDIA_TYPES = (
    mimetypes.MimeTypes()
)  # Python's own table: those of systems have types for backups and pages of manuals
# How a file of a format that people use begins, where its name does not say what it is.
_BEGINNING = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes here by itself, the common ones first."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if _is_decoded(name))


def _is_decoded(name: str) -> bool:
    factory = Image.OPEN[name][0]
    if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile):
        return False  # told by its header, decoded by a plugin that Pillow does not have
    library = _LIBRARIES.get(name)
    return name not in _NOT_DECODED and (library is None or bool(features.check(library)))


@functools.cache
def _readable_endings() -> frozenset[str]:
    formats = readable_formats()
    return frozenset(
        ending.lower() for ending, name in Image.registered_extensions().items() if name in formats
    )


def is_readable(file: str) -> bool:
    """Whether a file with this name is of a format that Pillow decodes here; upper case does not matter."""
    return os.path.splitext(file)[1].lower() in _readable_endings()


def looks_like_image(file: str) -> bool:
    """Whether the ending of this name is one of images, readable here or not."""
    ending = os.path.splitext(file)[1].lower()
    if ending in _readable_endings() or ending in _OTHER_IMAGES:
        return True
    return (mimetypes.guess_type(f"x{ending}", strict=False)[0] or "").startswith("image/")


def has_images_content(path: str) -> bool:
    """Whether a file whose name says nothing (it has no ending, or one of no media type) begins as an image does."""
    ending = os.path.splitext(path)[1].lower()
    if _MEDIA_TYPES.guess_type(f"x{ending}")[0] is not None:
        return False
    try:
        with open(path, "rb") as file:
            return _BEGINNING.match(file.read(12)) is not None
    except OSError:
        return False


def strip_extensions(file: str) -> str:
    """The name without its image ending, or endings: some Market-1501 files end in ``.jpg.jpg``."""
    while is_readable(file):
        file = os.path.splitext(file)[0]
    return file
