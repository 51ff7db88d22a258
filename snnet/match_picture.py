"""Queries and their matches as one picture: a query a row, its matches to the right by falling similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from snnet.data.decoding import load_image
from snnet.outputs import write_atomically

HEIGHT, WIDTH = 160, 80  # of a crop, in pixels; one of another shape is centred
CAPTION, MARGIN = 16, 6
GREY = (225, 225, 225)


def write_match_picture(path: Path, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """Write a PNG of ``rows``: a query's image file, and (image file, similarity) of each of its matches.

    Raises :class:`~snnet.errors.UserError` where an image cannot be read or the picture not be written.
    """
    columns = 1 + max(len(matches) for _, matches in rows)
    size = MARGIN + columns * (WIDTH + MARGIN) + MARGIN, MARGIN + len(rows) * (HEIGHT + CAPTION + MARGIN)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    line = 2 * MARGIN + WIDTH - MARGIN // 2
    draw.rectangle((line, MARGIN, line + 1, size[1] - MARGIN), fill=GREY)
    for row, (query, matches) in enumerate(rows):
        top = MARGIN + row * (HEIGHT + CAPTION + MARGIN)
        _place(picture, draw, query, MARGIN, top, "query")
        for column, (match, similarity) in enumerate(matches, start=1):
            left = 2 * MARGIN + column * (WIDTH + MARGIN)
            _place(picture, draw, match, left, top, f"{column}: {similarity:.3f}")
    write_atomically(path, lambda file: picture.save(file, "PNG"))


def _place(
    picture: Image.Image, draw: ImageDraw.ImageDraw, path: str, left: int, top: int, caption: str
) -> None:
    crop = Image.fromarray(load_image(path).permute(1, 2, 0).numpy())
    scale = min(HEIGHT / crop.height, WIDTH / crop.width)
    crop = crop.resize((max(1, round(crop.width * scale)), max(1, round(crop.height * scale))))
    draw.rectangle((left, top, left + WIDTH - 1, top + HEIGHT - 1), fill=GREY)
    picture.paste(crop, (left + (WIDTH - crop.width) // 2, top + (HEIGHT - crop.height) // 2))
    draw.text((left + 1, top + HEIGHT + 2), caption, fill="black")
