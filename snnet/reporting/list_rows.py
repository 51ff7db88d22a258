"""Ranked lists as rows of images, with a line of words each."""

from __future__ import annotations

from collections.abc import Sequence

from snnet.data import ImageSet
from snnet.data.decoding import load_image
from snnet.reporting.pictures import Tile
from snnet.reporting.ranked import RankedList, Shown

Row = tuple[str, list[Tile]]  # a line about a list, and its images


def rows(lists: Sequence[RankedList], firsts: ImageSet, others: ImageSet, first_word: str) -> list[Row]:
    """Each list: its first image, of ``firsts`` and called ``first_word``; then those of ``others``.

    Reads every image now, so that one that cannot be read raises :class:`~snnet.errors.UserError` while the page can
    still leave these lists out.
    """
    found = [_row(one, firsts, others, first_word) for one in lists]
    for path in sorted({tile.path for _, tiles in found for tile in tiles}):
        load_image(path)
    return found


def _row(one: RankedList, firsts: ImageSet, others: ImageSet, first_word: str) -> Row:
    place = _place(firsts, one.image)
    title = [f"{first_word} {one.image + 1:,}", place]
    caption = f"{first_word} {_camera(firsts, one.image)}".rstrip()
    tiles = [Tile(firsts.paths[one.image], caption, alt=_joined(", ", first_word, place))]
    for shown in one.shown:
        caption = f"{_camera(others, shown.image)} {shown.similarity:.3f}".lstrip()
        tiles.append(_tile(others, shown, caption, shown.rank == 1))
    if one.average_precision is not None:
        title.append(f"average precision {100 * one.average_precision:.1f} %")
    if one.first_match is not None:
        title.append(f"first right image at rank {one.first_match.rank:,}")
        tiles.append(_tile(others, one.first_match, f"rank {one.first_match.rank:,}", True))
    return _joined(" · ", *title), tiles


def _tile(images: ImageSet, shown: Shown, caption: str, apart: bool) -> Tile:
    right = {True: "right", False: "wrong", None: ""}[shown.right]
    labelled = {True: "labelled positive", False: "not labelled", None: ""}[shown.labelled]
    place, similarity = _place(images, shown.image), f"similarity {shown.similarity:.3f}"
    alt = _joined(", ", f"rank {shown.rank}", right, labelled, place, similarity)
    return Tile(images.paths[shown.image], caption, shown.right, bool(shown.labelled), apart, alt)


def _place(images: ImageSet, index: int) -> str:
    """Identity and camera of an image as words, as far as they are known."""
    identity = "" if images.pids is None else f"identity {images.pids[index]}"
    camera = "" if images.cams is None else f"camera {images.cams[index]}"
    return _joined(", ", identity, camera)


def _camera(images: ImageSet, index: int) -> str:
    return "" if images.cams is None else f"c{images.cams[index]}"


def _joined(separator: str, *words: str) -> str:
    """The words that are not empty."""
    return separator.join(filter(None, words))
