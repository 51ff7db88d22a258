"""Rows of framed images as one picture, and single ones for a page. :mod:`snnet.search` draws with it, too."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from snnet.data.decoding import load_image
from snnet.reporting.colors import LIGHT

WIDTH, HEIGHT = 64, 128  # of an image in its frame, in pixels; one of another shape is fitted into it
MARGIN, CAPTION, FRAME = 8, 16, 4
PICTURE_ROWS = 50  # that a picture has at most: one of any number would take memory without bound
PICTURE_COLUMNS = 50  # images of a row at most, besides the first one
_LARGEST = 2  # a page holds an image at up to this many times that size


@dataclass(frozen=True)
class Tile:
    """One image of a row."""

    path: str  # of its file, which is read when it is drawn
    caption: str  # a few words below it
    right: bool | None = None  # a tick and a frame, or a cross and a thin frame; None: a plain one
    labelled: bool = False  # a bar along its foot
    apart: bool = False  # stands off from the one before
    alt: str = ""  # all about it in words, for someone who does not see it

    @property
    def name(self) -> str:
        """The name of its file."""
        return os.path.basename(self.path)

    @property
    def uri(self) -> str:
        """The image as a JPEG inside a page."""
        small = self.picture()
        small.thumbnail((_LARGEST * WIDTH, _LARGEST * HEIGHT))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

    def picture(self) -> Image.Image:
        """The image; raises :class:`~snnet.errors.UserError` naming its file where that cannot be read."""
        return Image.fromarray(load_image(self.path).permute(1, 2, 0).contiguous().numpy())


def draw_rows(lists: Iterable[Iterable[Tile]]) -> Image.Image:
    """The lists below one another: the first :data:`PICTURE_ROWS`, and each without what is past its bound."""
    rows = [list(islice(tiles, 1 + PICTURE_COLUMNS)) for tiles in islice(lists, PICTURE_ROWS)]
    cell, height = WIDTH + 2 * FRAME + MARGIN, HEIGHT + 2 * FRAME + CAPTION + MARGIN
    width = max(sum(cell + 2 * MARGIN * tile.apart for tile in row) for row in rows)
    picture = Image.new("RGB", (MARGIN + width, MARGIN + len(rows) * height), LIGHT["paper"])
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        left, top = MARGIN, MARGIN + number * height
        for tile in row:
            left += 2 * MARGIN * tile.apart
            _place(picture, draw, tile, left, top)
            left += cell
    return picture


def _place(picture: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    right, bottom = left + WIDTH + 2 * FRAME - 1, top + HEIGHT + 2 * FRAME - 1
    role = {True: "right", False: "wrong", None: "axis"}[tile.right]
    draw.rectangle((left, top, right, bottom), LIGHT["grid"])
    # A wrong image differs by a thin frame too, not by its colour alone; a label is a bar below the image.
    draw.rectangle((left, top, right, bottom), None, LIGHT[role], FRAME if tile.right else FRAME // 2)
    image = tile.picture()
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    x, y = left + FRAME + (WIDTH - image.width) // 2, top + FRAME + (HEIGHT - image.height) // 2
    picture.paste(image, (x, y))
    if tile.labelled:
        draw.rectangle((left, bottom - 2 * FRAME, right, bottom), LIGHT["series-0"])
    font = ImageFont.load_default(12)
    draw.text((left + 1, bottom + 14), tile.caption, LIGHT["ink"], font, "ls")
    if tile.right is not None:
        _sign(draw, tile.right, right - 8, bottom + 5)


def _sign(draw: ImageDraw.ImageDraw, right: bool, left: int, top: int) -> None:
    """A tick or a cross of 9 pixels."""
    color = LIGHT["right" if right else "wrong"]
    if right:
        draw.line([(left, top + 5), (left + 3, top + 8), (left + 8, top)], color, 2, "curve")
    else:
        draw.line([(left, top), (left + 8, top + 8)], color, 2)
        draw.line([(left, top + 8), (left + 8, top)], color, 2)


def png_file(picture: Image.Image, mark: str) -> bytes:
    """A picture as the content of a file that has the mark."""
    file, info = io.BytesIO(), PngInfo()
    info.add_text("Software", mark)
    picture.save(file, "PNG", optimize=True, pnginfo=info)
    return file.getvalue()
