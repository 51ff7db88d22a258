"""One reader a layout: from a folder on disk to the splits of a dataset."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snnet.data.finding import check_folder, find_entry, find_root, list_images
from snnet.data.image_formats import strip_extensions
from snnet.data.image_set import ImageSet, ReIDDataset
from snnet.data.names import NamePattern, to_numbers
from snnet.errors import UserError
from snnet.files.text import FileFault, read_text, shown

MARKET_PATTERN = r"(?P<pid>[-−]?\d+)_c(?P<cam>\d+)"
MARKET_SPLITS = (("bounding_box_train",), ("query",), ("bounding_box_test",))
VERI_SPLITS = (("image_train",), ("image_query",), ("image_test",))
CUSTOM_SPLITS = (
    ("train", "bounding_box_train", "image_train"),
    ("query", "image_query"),
    ("gallery", "bounding_box_test", "image_test"),
)
MSMT17_SPLITS = (
    ("train", "mask_train_v2"),
    ("test", "mask_test_v2"),
    ("list_train.txt",),
    ("list_val.txt",),
    ("list_query.txt",),
    ("list_gallery.txt",),
)
LIST_BYTES = 1 << 28  # the most of a list of images; MSMT17's has 3 MB
CAMSTYLE_FOLDER = "bounding_box_train_camstyle"
MSMT17_FILE = re.compile(r"(?:.*/)?[^_/]+_[^_/]+_(?P<cam>[0-9]{1,18})_[^/]*")
MSMT17_PID = re.compile(r"[-−]?[0-9]{1,18}")
STYLE_PATTERN = re.compile(r"(?P<stem>.+)_fake_(?:(?P<source>\d+)to)?(?P<target>\d+)")


def read_named_splits(
    name: str,
    data_dir: str,
    folder_names: Sequence[str] = (),
    *,
    splits: Sequence[Sequence[str]] = MARKET_SPLITS,
    pattern: NamePattern | None = None,
    camstyle: bool = False,
) -> ReIDDataset:
    """Three folders whose file names carry identity and camera: Market-1501 and all that copied its layout.

    A negative identity is junk, -1. Junk is left out of training; that of the gallery stays, for the evaluation to
    drop.
    """
    pattern = pattern or NamePattern(MARKET_PATTERN)
    root = find_root(name, data_dir, folder_names, splits)
    folders = [path for names in splits if (path := find_entry(root, names)) is not None]
    listed = [list_images(name, folder) for folder in folders]
    files = [split for split, _ in listed]
    values = [pattern.parse(name, folder, split) for folder, split in zip(folders, files, strict=True)]
    pids = to_numbers([value["pid"] for value in values], identities=True)
    cams = to_numbers([value["cam"] for value in values]) if "cam" in values[0] else [None] * 3
    train, query, gallery = (
        ImageSet(_join(folder, split), split_pids, split_cams, left_out=left_out)
        for folder, (split, left_out), split_pids, split_cams in zip(folders, listed, pids, cams, strict=True)
    )
    if camstyle:
        train = _with_styles(name, train, root, files[0])
    return ReIDDataset(name, _without_junk(name, train, folders[0]), query, gallery)


def read_msmt17(
    name: str, data_dir: str, folder_names: Sequence[str], *, camstyle: bool = False
) -> ReIDDataset:
    """MSMT17 of either release: ``train``/``test`` (V1) or ``mask_train_v2``/``mask_test_v2`` (V2) and lists.

    The training split is list_train and list_val together (32,621 images), as unsupervised methods count it; junk
    is treated as in :func:`read_named_splits`.
    """
    root = find_root(name, data_dir, folder_names, MSMT17_SPLITS)
    entries = [path for names in MSMT17_SPLITS if (path := find_entry(root, names)) is not None]
    train_folder, test_folder, list_train, list_val, list_query, list_gallery = entries
    train_files = _read_list(name, list_train) + _read_list(name, list_val)
    train = _listed_images(train_folder, train_files)
    query = _listed_images(test_folder, _read_list(name, list_query))
    gallery = _listed_images(test_folder, _read_list(name, list_gallery))
    if camstyle:
        train = _with_styles(name, train, root, sorted(file for file, _, _ in train_files))
    return ReIDDataset(name, _without_junk(name, train, train_folder), query, gallery)


def read_folder(name: str, data_dir: str, pattern: NamePattern | None = None) -> ReIDDataset:
    """Any tree of crops: no identities, no evaluation; cameras if a pattern finds them in the names."""
    check_folder(name, data_dir)
    files, left_out = list_images(name, data_dir)
    cams = None if pattern is None else to_numbers([pattern.parse(name, data_dir, files)["cam"]])[0]
    return ReIDDataset(name, ImageSet(_join(data_dir, files), None, cams, left_out=left_out), None, None)


def _without_junk(name: str, train: ImageSet, folder: str) -> ImageSet:
    """The training images that have an identity; the summary tells how many have none."""
    assert train.pids is not None
    kept = train.select(train.pids >= 0)
    if len(kept) == 0:
        raise UserError(f"dataset {name}: every image in {folder!r} has pid -1: none is left to train on")
    if junk := len(train) - len(kept):
        kept = dataclasses.replace(kept, left_out=(f"{junk:,} junk (pid -1)", *kept.left_out))
    return kept


def _join(folder: str, files: Sequence[str]) -> tuple[str, ...]:
    return tuple(os.path.join(folder, file) for file in files)


def _read_list(name: str, path: str) -> list[tuple[str, int, int]]:
    """The lines of an MSMT17 list as (file, pid, camera); the camera is the file name's third field."""
    entries = []
    try:
        text = read_text(Path(path), most_bytes=LIST_BYTES, file_names=True)
    except OSError as error:
        raise UserError(f"dataset {name}: cannot read the list {path!r}: {error.strerror}") from error
    except FileFault as error:
        raise UserError(f"dataset {name}: the list {path!r} {error}") from error
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        file, *rest = line.strip().rsplit(None, 1)  # at the last space
        name_match = MSMT17_FILE.fullmatch(file)
        if name_match is None or not rest or MSMT17_PID.fullmatch(rest[0]) is None:
            raise UserError(
                f"dataset {name}: line {number} of {path!r} is {shown(line.strip())!r}, "
                "not a file name with the camera as its third field, a space and an identity"
            )
        pid = to_numbers([rest], identities=True)[0]
        entries.append((file, int(pid[0]), int(name_match["cam"])))
    if not entries:
        raise UserError(f"dataset {name}: the list {path!r} is empty")
    return entries


def _listed_images(folder: str, entries: list[tuple[str, int, int]]) -> ImageSet:
    files, pids, cams = zip(*sorted(entries), strict=True)
    return ImageSet(_join(folder, files), np.array(pids, np.int64), np.array(cams, np.int64))


def _with_styles(name: str, train: ImageSet, root: str, files: Sequence[str]) -> ImageSet:
    """``train`` with the CamStyle files of each image; ``files`` are its paths relative to its folder.

    A style is ``<stem>_fake_<from>to<to>``, or ``<stem>_fake_<to>`` as published for MSMT17, under the same
    subfolder as its image. One that leads to the image's own camera is no other view, and is left out.
    """
    folder = find_entry(root, (CAMSTYLE_FOLDER,))
    if folder is None:
        raise UserError(f"dataset {name}: CamStyle needs the folder {CAMSTYLE_FOLDER!r} in {root!r}")
    if train.cams is None:
        raise UserError(f"dataset {name}: CamStyle needs a name pattern with a group (?P<cam>...)")
    styles: dict[str, list[tuple[int | None, int, str]]] = defaultdict(list)
    for file in list_images(name, folder)[0]:
        match = STYLE_PATTERN.fullmatch(strip_extensions(file))
        if match is None:
            path = os.path.join(folder, file)
            raise UserError(f"dataset {name}: the name of {path!r} is not <stem>_fake_<from>to<to>")
        source = None if match["source"] is None else int(match["source"])
        style = source, int(match["target"]), os.path.join(folder, file)
        styles[strip_extensions(match["stem"])].append(style)
    chosen = tuple(
        tuple(
            path
            for source, target, path in styles[strip_extensions(file)]
            if target != (int(cam) if source is None else source)
        )
        for file, cam in zip(files, train.cams, strict=True)
    )
    if not any(chosen):
        raise UserError(f"dataset {name}: no file in {folder!r} belongs to an image of the training split")
    return dataclasses.replace(train, styles=chosen)
