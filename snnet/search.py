"""``python -m snnet.search``: the crops of a gallery that are most similar to a query, without any labels."""

from __future__ import annotations

import sys

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import SearchCommand
from snnet.errors import UserError
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(SearchCommand.parse)

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from snnet.data import ImageSet, build_dataset
from snnet.files.outputs import check_output, write_bytes
from snnet.files.own_files import SEARCH_MARK, check_own, is_own
from snnet.reporting.pictures import PICTURE_COLUMNS, PICTURE_ROWS, Tile, draw_rows, png_file
from snnet.retrieval.features import PAIRS_AT_A_TIME, decode
from snnet.retrieval.gallery_cache import gallery_features
from snnet.retrieval.trained import load_trained_model
from snnet.runtime import show_warnings_as_lines
from snnet.system.progress import say, set_quiet
from snnet.system.terminal import answer
from snnet_kernels import memory_similarity


@dataclass(frozen=True)
class Matches:
    """The gallery images most similar to one query, in descending order of similarity."""

    query: str  # the file
    gallery: tuple[str, ...]  # files
    similarity: tuple[float, ...]  # cosines


def main(command: SearchCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    # With --json, stdout is that list alone.
    with contextlib.redirect_stdout(sys.stderr):
        found = search(command)
    if command.json:
        answer(json.dumps([_record(matches) for matches in found]))
    else:
        answer(*match_table(found, command.gallery))


def search(command: SearchCommand) -> list[Matches]:
    """The best matches of every query; also writes them as a picture if ``command`` asks for one.

    A query that is itself in the gallery is not among its own matches. The picture of an earlier search, which this one
    replaces, is no image of the gallery. Raises :class:`~snnet.errors.UserError` for a checkpoint, weights or images
    that cannot be used, and if a file that no search wrote is where the picture goes without a flag.
    """
    _check_picture(command)
    gallery, query = (
        _images(command, command.gallery, "--gallery"),
        _images(command, command.query, "--query"),
    )
    _check_picture(command, (*query.paths, *gallery.paths))
    trained = load_trained_model(command.checkpoint, command.preset, command.given)
    decoded_query = decode(query, trained.config)
    query = decoded_query.images
    gallery, gallery_rows = gallery_features(trained, gallery, command.gallery, command.feature_cache)
    query_rows = trained.features(decoded_query).cpu().numpy()
    best = top_matches(query_rows, gallery_rows, command.top_k, _own_places(query, gallery))
    found = [
        Matches(path, tuple(gallery.paths[i] for i in places.tolist()), tuple(similarity.tolist()))
        for path, (places, similarity) in zip(query.paths, best, strict=True)
    ]
    if command.picture is not None:
        content = png_file(draw_rows(map(_tiles, found)), SEARCH_MARK)
        _check_picture(command)
        write_bytes(command.picture, content)
        most = max(len(matches.gallery) for matches in found)
        first = f", the first {PICTURE_COLUMNS} of each" if most > PICTURE_COLUMNS else ""
        say(
            f"{command.picture}: the matches of {min(len(found), PICTURE_ROWS)} of {len(found)} queries{first}"
        )
    return found


def _check_picture(command: SearchCommand, read: tuple[str, ...] = ()) -> None:
    """Refuse a picture that cannot be written, or would replace one of the images that are ``read``.

    By default refuse one in whose place is a file that no search wrote.
    """
    if command.picture is None:
        return
    check_output(command.picture, (".png",), "--picture", read)
    if command.picture is SearchCommand.picture:  # the default: the flag was not given
        check_own(command.picture, SEARCH_MARK, "another file with --picture")


def top_matches(
    query: np.ndarray,  # float32 [q, d]
    gallery: np.ndarray,  # float32 [g, d]
    k: int,
    own: list[list[int]],  # for each query its own positions in the gallery, which are skipped
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query the positions of its k best gallery rows and their similarities; ties in gallery order."""
    found = []
    rows = torch.from_numpy(gallery)
    step = max(1, PAIRS_AT_A_TIME // len(gallery))
    for start in range(0, len(query), step):
        block = memory_similarity(torch.from_numpy(query[start : start + step]), rows).numpy()
        for similarity, skipped in zip(block, own[start : start + step], strict=True):
            others = np.delete(np.arange(len(gallery)), skipped)
            similarity = similarity[others]
            kept = min(k, len(similarity))
            if kept == 0:
                found.append((np.zeros(0, np.int64), similarity))
                continue
            bar = np.partition(similarity, len(similarity) - kept)[len(similarity) - kept]
            best = np.flatnonzero(similarity >= bar)  # rising; more than k where the last one is tied
            best = best[np.argsort(-similarity[best], kind="stable")[:kept]]
            found.append((others[best], similarity[best]))
    return found


def _tiles(matches: Matches) -> Iterator[Tile]:
    """A query and its matches as a row of a picture."""
    yield Tile(matches.query, "query")
    for rank, (path, value) in enumerate(zip(matches.gallery, matches.similarity, strict=True), start=1):
        yield Tile(path, f"{rank}: {value:.3f}", apart=rank == 1)


def match_table(found: list[Matches], gallery: Path) -> list[str]:
    """The matches of each query as lines of text; gallery files are named relative to its folder."""
    lines = []
    for matches in found:
        lines += [matches.query, f"{'rank':>6}  similarity  {gallery}"]
        pairs = zip(matches.similarity, matches.gallery, strict=True)
        lines += [
            f"{rank:>6}  {similarity:>10.4f}  {os.path.relpath(path, gallery)}"
            for rank, (similarity, path) in enumerate(pairs, start=1)
        ]
    return lines


def _record(matches: Matches) -> dict[str, object]:
    pairs = zip(matches.gallery, matches.similarity, strict=True)
    return {
        "query": matches.query,
        "matches": [{"image": image, "similarity": round(value, 6)} for image, value in pairs],
    }


def _images(command: SearchCommand, path: Path, flag: str) -> ImageSet:
    """The images of a folder, or the one that a file is."""
    if path.is_dir():
        try:
            images = build_dataset("folder", str(path)).train
        except UserError as error:
            raise UserError(f"{flag} {path}: {str(error).removeprefix('dataset folder: ')}") from error
    elif flag == "--query" and path.is_file():
        images = ImageSet((str(path),), None, None)
    else:
        raise UserError(
            f"{flag} {path}: there is no such folder" + (" or image" if flag == "--query" else "")
        )
    images = _without_picture(images, command.picture)
    if not len(images):
        raise UserError(f"{flag} {path}: the only image is the picture of a search, which this one replaces")
    if path.is_dir():
        say(f"{flag} {path}: {images.summary()}")
    return images


def _without_picture(images: ImageSet, picture: Path | None) -> ImageSet:
    """The images but the picture of an earlier search that is where this one's goes."""
    place = "" if picture is None else os.path.realpath(picture)
    if not os.path.isfile(place) or not is_own(Path(place), SEARCH_MARK):
        return images
    keep = np.array([os.path.realpath(path) != place for path in images.paths])
    if keep.all():
        return images
    left_out = (*images.left_out, "the picture of an earlier search")
    return dataclasses.replace(images.select(keep), left_out=left_out)


def _own_places(query: ImageSet, gallery: ImageSet) -> list[list[int]]:
    """The places of each query's own file in the gallery, rising: links may lead to it too."""
    places: dict[str, list[int]] = {}
    for place, path in enumerate(gallery.paths):
        places.setdefault(os.path.realpath(path), []).append(place)
    return [places.get(os.path.realpath(path), []) for path in query.paths]


if __name__ == "__main__":
    run_command(lambda: main(command))
