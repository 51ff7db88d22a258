"""Ranked lists as rows of images with words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from snnet.data import DecodedImages
from snnet.reporting.pictures import Tile
from snnet.reporting.ranked import RankedList, Shown

Row = tuple[str, list[Tile]]  # a line about a list, and its images


def rows(
    lists: Sequence[RankedList], firsts: DecodedImages, others: DecodedImages, first_word: str
) -> list[Row]:
    """Each list: its first image, of ``firsts`` and called ``first_word``; then those of ``others``."""
    return [(_title(row, firsts, first_word), _tiles(row, firsts, others, first_word)) for row in lists]


def _title(row: RankedList, firsts: DecodedImages, first_word: str) -> str:
    words = [f"{first_word} {row.image + 1:,}", _place(firsts, row.image)]
    if row.average_precision is not None:
        words.append(f"average precision {100 * row.average_precision:.1f} %")
    if row.first_match is not None:
        words.append(f"first right image at rank {row.first_match.rank:,}")
    return " · ".join(filter(None, words))


def _tiles(row: RankedList, firsts: DecodedImages, others: DecodedImages, first_word: str) -> list[Tile]:
    words = f"{first_word} {_camera(firsts, row.image)}".rstrip()
    alt = ", ".join(filter(None, [first_word, _place(firsts, row.image)]))
    tiles = [Tile(partial(firsts.image, row.image), words, alt=alt, name=_file(firsts, row.image))]
    for shown in row.shown:
        words = f"{_camera(others, shown.image)} {shown.similarity:.3f}".lstrip()
        tiles.append(_tile(others, shown, words, shown.rank == 1))
    if row.first_match is not None:
        tiles.append(_tile(others, row.first_match, f"rank {row.first_match.rank:,}", True))
    return tiles


def _tile(images: DecodedImages, shown: Shown, caption: str, apart: bool) -> Tile:
    words = [f"rank {shown.rank}"]
    if shown.right is not None:
        words.append("right" if shown.right else "wrong")
    if shown.labelled is not None:
        words.append("labelled positive" if shown.labelled else "not labelled")
    words += [_place(images, shown.image), f"similarity {shown.similarity:.3f}"]
    return Tile(
        partial(images.image, shown.image),
        caption,
        shown.right,
        bool(shown.labelled),
        apart,
        ", ".join(filter(None, words)),
        _file(images, shown.image),
    )


def _place(images: DecodedImages, index: int) -> str:
    """Identity and camera of an image as words, as far as they are known."""
    pids, cams = images.images.pids, images.images.cams
    words = [] if pids is None else [f"identity {pids[index]}"]
    return ", ".join(words if cams is None else [*words, f"camera {cams[index]}"])


def _camera(images: DecodedImages, index: int) -> str:
    cams = images.images.cams
    return "" if cams is None else f"c{cams[index]}"


def _file(images: DecodedImages, index: int) -> str:
    return os.path.basename(images.images.paths[index])
