"""Ranked lists as pictures: small images for a page, and whole lists as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from snnet.data import DecodedImages
from snnet.reporting.drawing import LIGHT, font, png_bytes
from snnet.reporting.ranked import RankedList, Shown

CROP_WIDTH, CROP_HEIGHT = 64, 128  # of an image on the page; one of another shape is fitted into it
MARGIN, CAPTION, FRAME = 8, 16, 4
_LARGEST = 2  # times that, what is embedded of a larger image


@dataclass(frozen=True, eq=False)
class Lists:
    """Ranked lists with the images that they are made of.

    Attributes:
        name: of the file and of the place on the page.
        title, about: what they show.
        lists: first images and theirs.
        firsts, others: the splits of the first image of a list and of the others.
        first_word: what the first image is: "query", say.
    """

    name: str
    title: str
    about: str
    lists: Sequence[RankedList]
    firsts: DecodedImages
    others: DecodedImages
    first_word: str


def place(images: DecodedImages, index: int) -> str:
    """Identity and camera of an image as words, as far as they are known."""
    pids, cams = images.images.pids, images.images.cams
    words = [] if pids is None else [f"identity {pids[index]}"]
    return ", ".join(words if cams is None else [*words, f"camera {cams[index]}"])


def caption(images: DecodedImages, shown: Shown) -> str:
    """The few words under an image: camera and similarity."""
    cams = images.images.cams
    return f"{'' if cams is None else f'c{cams[shown.image]} '}{shown.similarity:.3f}"


def describe(images: DecodedImages, shown: Shown) -> str:
    """All about an image, for someone who does not see it."""
    words = [f"rank {shown.rank}"]
    if shown.right is not None:
        words.append("right" if shown.right else "wrong")
    if shown.labelled is not None:
        words.append("labelled positive" if shown.labelled else "not labelled")
    words += [place(images, shown.image), f"similarity {shown.similarity:.3f}"]
    return ", ".join(filter(None, words))


def role(shown: Shown) -> str:
    """What the frame of an image is drawn in."""
    return {True: "right", False: "wrong", None: "axis"}[shown.right]


def data_uri(images: DecodedImages, index: int) -> str:
    """The image as a JPEG inside a page."""
    image = crop(images, index)
    image.thumbnail((_LARGEST * CROP_WIDTH, _LARGEST * CROP_HEIGHT))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def crop(images: DecodedImages, index: int) -> Image.Image:
    """An image of a split."""
    return Image.fromarray(images.image(index).permute(1, 2, 0).contiguous().numpy())


def to_png(lists: Lists) -> bytes:
    """A list a row: its first image, then the others, framed by right and wrong."""
    gap = 2 * MARGIN  # before and after the ranking
    columns = max(len(row.shown) for row in lists.lists)
    missed = any(row.first_match is not None for row in lists.lists)
    cell = CROP_WIDTH + 2 * FRAME + MARGIN
    height = CROP_HEIGHT + 2 * FRAME + CAPTION + MARGIN
    size = MARGIN + (1 + columns) * cell + gap + missed * (gap + cell), MARGIN + len(lists.lists) * height
    picture = Image.new("RGB", size, LIGHT["paper"])
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(lists.lists):
        top = MARGIN + number * height
        _paste(picture, draw, crop(lists.firsts, row.image), (MARGIN, top), None)
        cams = lists.firsts.images.cams
        words = lists.first_word if cams is None else f"{lists.first_word} c{cams[row.image]}"
        _write(draw, words, MARGIN, top)
        left = MARGIN + gap
        for shown in row.shown:
            left += cell
            _place(picture, draw, lists.others, shown, caption(lists.others, shown), (left, top))
        if row.first_match is not None:
            at = left + cell + gap, top
            _place(picture, draw, lists.others, row.first_match, f"rank {row.first_match.rank}", at)
    return png_bytes(picture)


def _place(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    images: DecodedImages,
    shown: Shown,
    words: str,
    at: tuple[int, int],
) -> None:
    left, top = at
    _paste(picture, draw, crop(images, shown.image), at, shown)
    _write(draw, words, left, top)
    if shown.right is not None:
        _sign(draw, shown.right, left + 2 * FRAME + CROP_WIDTH - 9, top + CROP_HEIGHT + 2 * FRAME + 4)


def _paste(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: Image.Image,
    at: tuple[int, int],
    shown: Shown | None,
) -> None:
    left, top = at
    right, bottom = left + CROP_WIDTH + 2 * FRAME - 1, top + CROP_HEIGHT + 2 * FRAME - 1
    # A wrong image differs by a thin frame too, not by its colour alone; a label is a bar below the image.
    width = 2 if shown is None or shown.right is False else FRAME
    draw.rectangle((left, top, right, bottom), LIGHT["grid"])
    draw.rectangle((left, top, right, bottom), None, LIGHT["axis" if shown is None else role(shown)], width)
    scale = min(CROP_WIDTH / image.width, CROP_HEIGHT / image.height)
    fitted = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    picture.paste(
        fitted,
        (
            left + FRAME + (CROP_WIDTH - fitted.width) // 2,
            top + FRAME + (CROP_HEIGHT - fitted.height) // 2,
        ),
    )
    if shown is not None and shown.labelled:
        draw.rectangle((left, bottom - 2 * FRAME, right, bottom), LIGHT["series-0"])


def _write(draw: ImageDraw.ImageDraw, words: str, left: int, top: int) -> None:
    at = left + 1, top + CROP_HEIGHT + 2 * FRAME + 13
    draw.text(at, words, LIGHT["ink"], font(12), "ls")


def _sign(draw: ImageDraw.ImageDraw, right: bool, left: int, top: int) -> None:
    """A tick or a cross of 9 pixels."""
    color = LIGHT["right" if right else "wrong"]
    if right:
        draw.line([(left, top + 5), (left + 3, top + 8), (left + 8, top)], color, 2, "curve")
    else:
        draw.line([(left, top), (left + 8, top + 8)], color, 2)
        draw.line([(left, top + 8), (left + 8, top)], color, 2)
