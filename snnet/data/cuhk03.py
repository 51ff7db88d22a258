"""CUHK03 as torchreid extracts it of the original file: folders of images and lists of splits."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnet.data.finding import candidates, check_folder, find_entry
from snnet.data.image_set import ImageSet, ReIDDataset
from snnet.errors import UserError
from snnet.files.text import FileFault, parse_json, read_text, shown

FOLDERS = ("images_detected", "images_labeled")
SPLITS = ("train", "query", "gallery")
LIST_BYTES = 1 << 28  # the most of a list; one of 20 splits has 60 MB
# Pair of cameras, person of that pair, view, image.
RAW_NAME = re.compile(r"(?P<pair>[0-9]{1,3})_(?P<person>[0-9]{1,6})_(?P<view>[0-9]{1,3})_[0-9]+\.\w+")
PERSONS = 1_000_000  # more than a pair of cameras can have by that pattern


def find_raw(name: str, data_dir: str, folder_names: Sequence[str]) -> tuple[str, str] | None:
    """The folder of raw images, ``detected`` before ``labeled``, and the folder of their lists; None without one.

    The first is ``data_dir`` itself, or lies in it, or in a folder of one of ``folder_names`` up to two levels below.
    """
    check_folder(name, data_dir)
    if os.path.basename(os.path.abspath(data_dir)).lower() in FOLDERS:
        return data_dir, os.path.dirname(os.path.abspath(data_dir))
    for folder in candidates(data_dir, folder_names):
        if images := find_entry(folder, FOLDERS):
            return images, folder
    return None


def read_raw_cuhk03(name: str, data_dir: str, folder_names: Sequence[str], protocol: str) -> ReIDDataset:
    """``images_detected`` or ``images_labeled`` by the first split of ``splits_<protocol>_<kind>.json``.

    Images are named pair, person, view and number: ``1_001_2_06.png``. An identity is a person of a pair, numbered by
    both; the camera is the view, as in CUHK03-NP. Lists may name the files by paths of another machine: only names
    count. ``data_dir`` as :func:`find_raw` takes it.

    Raises:
        UserError: no images, no list, or one that is not as torchreid writes it; a name of another kind.
    """
    found = find_raw(name, data_dir, folder_names)
    if found is None:
        raise UserError(f"dataset {name}: {data_dir!r} has no folder {' or '.join(FOLDERS)}")
    images, root = found
    wanted = (
        f"splits_{protocol}_{os.path.basename(os.path.abspath(images)).lower().removeprefix('images_')}.json"
    )
    path = find_entry(root, [wanted])
    if path is None:
        raise UserError(
            f"dataset {name}: {root!r} lacks {wanted}, which torchreid writes beside the images it extracts"
        )
    listed = _read_lists(name, path)
    train, query, gallery = (_images(name, images, path, listed[split]) for split in SPLITS)
    return ReIDDataset(name, train, query, gallery)


def _read_lists(name: str, path: str) -> dict[str, list[str]]:
    """The file names of each split of the first entry."""
    try:
        content = parse_json(read_text(Path(path), most_bytes=LIST_BYTES))
    except OSError as error:
        raise UserError(f"dataset {name}: cannot read the list {path!r}: {error.strerror}") from error
    except FileFault as error:
        raise UserError(f"dataset {name}: the list {path!r} {error}") from error
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        raise UserError(f"dataset {name}: {path!r} is no list of splits, got {shown(content)}")
    return {split: _names(name, path, split, first.get(split)) for split in SPLITS}


def _names(name: str, path: str, split: str, entries: Any) -> list[str]:
    """The names behind the last slash, of either kind, of ``[[path, identity, camera], ...]``."""
    if not isinstance(entries, list) or not entries:
        raise UserError(f"dataset {name}: {path!r} has no images for {split}, got {shown(entries)}")
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
            raise UserError(
                f"dataset {name}: {path!r} must list [path, identity, camera] for {split}, got {shown(entry)}"
            )
    return sorted(re.split(r"[/\\]", entry[0])[-1] for entry in entries)


def _images(name: str, folder: str, path: str, files: list[str]) -> ImageSet:
    matches = [RAW_NAME.fullmatch(file) for file in files]
    if None in matches:
        wrong = files[matches.index(None)]
        raise UserError(
            f"dataset {name}: {path!r} lists {shown(wrong)!r}, not a name of the pair, the person, the view and the "
            "number, such as 1_001_2_06.png"
        )
    pids = [int(match["pair"]) * PERSONS + int(match["person"]) for match in matches if match]
    cams = [int(match["view"]) for match in matches if match]
    return ImageSet(
        tuple(os.path.join(folder, file) for file in files),
        np.array(pids, np.int64),
        np.array(cams, np.int64),
    )
