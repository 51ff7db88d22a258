"""Finding things on disk: a dataset's folder, and the images under it."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NoReturn

from snnet.data.image_formats import has_images_content, is_readable, looks_like_image
from snnet.errors import UserError
from snnet.files.own_files import is_own_picture

# Folders that a system puts beside the folders of its users, or into them.
SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")


def check_folder(name: str, data_dir: str) -> None:
    """Raises :class:`UserError` unless ``data_dir`` is a folder."""
    if not os.path.isdir(data_dir):
        problem = "is a file, not a folder" if os.path.exists(data_dir) else "does not exist"
        raise UserError(f"dataset {name}: the data folder {data_dir!r} {problem}")


def find_root(name: str, data_dir: str, folder_names: Sequence[str], splits: Sequence[Sequence[str]]) -> str:
    """The folder that holds a dataset's splits: ``data_dir``, or one of ``folder_names`` up to two below.

    Args:
        name: the dataset, for the messages.
        data_dir: where the user says the data are.
        folder_names: usual names of the dataset's folder; case, "-", "_" and "." do not matter.
        splits: for each entry the dataset must hold, the names that it may have.

    Raises:
        UserError: ``data_dir`` is no folder, or no candidate holds every split.
    """
    check_folder(name, data_dir)
    partial = None
    for folder in candidates(data_dir, folder_names):
        missing = [names for names in splits if find_entry(folder, names) is None]
        if not missing:
            return folder
        if len(missing) < len(splits) and partial is None:
            partial = folder, missing
    if partial is not None:
        folder, missing = partial
        raise UserError(f"dataset {name}: {folder!r} lacks {_listing(missing)}")
    below = f" and in its folders named like {', '.join(folder_names)}" if folder_names else ""
    raise UserError(f"dataset {name}: looked for {_listing(splits)} in {data_dir!r}{below}: none is there")


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        _refuse_folder(error)


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"cannot read the folder {error.filename!r}: {error.strerror}") from error


def find_entry(folder: str, names: Sequence[str]) -> str | None:
    """The path of the first of ``names`` that lies in ``folder``; None without one.

    Where no entry has exactly this name, one that differs in case will do; several of those are a
    :class:`UserError`.
    """
    present = defaultdict(list)
    for entry in _entries(folder):
        present[entry.lower()].append(entry)
    for name in names:
        alike = present.get(name.lower(), [])
        if name in alike:
            return os.path.join(folder, name)
        if len(alike) > 1:
            listed = ", ".join(map(repr, sorted(alike)))
            raise UserError(
                f"{folder!r} has {listed}, which differ in case alone: name the right one {name!r}"
            )
        if alike:
            return os.path.join(folder, alike[0])
    return None


def candidates(data_dir: str, folder_names: Sequence[str]) -> Iterator[str]:
    """``data_dir``, then what lies below it under one of ``folder_names``, nearest first."""
    order = {_plain(name): position for position, name in enumerate(folder_names)}
    waiting = deque([(data_dir, 0)])
    while waiting:
        folder, depth = waiting.popleft()
        yield folder
        if depth < 2:
            named = [entry for entry in _entries(folder) if _plain(entry) in order]
            for entry in sorted(
                named, key=lambda entry: (order[_plain(entry)], entry not in folder_names, entry)
            ):
                if os.path.isdir(path := os.path.join(folder, entry)):
                    waiting.append((path, depth + 1))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name.lower())


def _listing(splits: Sequence[Sequence[str]]) -> str:
    return ", ".join(" or ".join(names) for names in splits)


def list_images(name: str, folder: str) -> tuple[list[str], tuple[str, ...]]:
    """Every image below ``folder``, as sorted paths relative to it with "/" between the parts.

    An image is a file whose ending is one of a format that Pillow decodes on this machine. Links to folders are
    followed, each folder being read once; a link that leads nowhere is listed, for decoding to name it.

    Returns:
        The files; and in words what was left out: how many files that look like images for each reason, how many
        folders, and the name of one of each. The reasons are an ending that Pillow does not read here, a name without
        an ending, a hidden file, a pipe or a device, a picture that a report or a search wrote under its usual name.
        A "._" file, which macOS puts beside an image, is no image. A folder is left out if its name is hidden or a
        system's, or if it was read under another name.

    Raises:
        UserError: there is none, or a folder cannot be read.
    """
    found: list[str] = []
    left_out: dict[str, list[str]] = {}
    folders_left_out: dict[str, list[str]] = {}
    for relative, entry in _walk(folder, folders_left_out):
        if entry.name.startswith("._"):
            continue
        if not looks_like_image(entry.name):
            if not entry.name.startswith(".") and _is_file(entry) and has_images_content(entry.path):
                left_out.setdefault("without the ending of an image", []).append(relative)
        elif not is_readable(entry.name):
            left_out.setdefault("of a format that Pillow does not read here", []).append(relative)
        elif entry.name.startswith("."):
            left_out.setdefault("hidden", []).append(relative)
        elif not _may_be_regular(entry):
            left_out.setdefault("pipes or devices", []).append(relative)
        elif is_own_picture(entry):
            left_out.setdefault("written by snnet.report or snnet.search", []).append(relative)
        else:
            found.append(relative)
    for why, folders in folders_left_out.items():
        left_out[f"folder{'s' if len(folders) > 1 else ''} {why}"] = folders
    words = tuple(f"{len(paths):,} {why} (one is {min(paths)!r})" for why, paths in sorted(left_out.items()))
    if not found:
        others = f"; left out: {', '.join(words)}" if words else ""
        raise UserError(
            f"dataset {name}: the folder {folder!r} holds no image (.jpg, .png and what else Pillow reads){others}"
        )
    return sorted(found), words


def _walk(folder: str, left_out: dict[str, list[str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files below ``folder`` with their paths relative to it, "/" between the parts.

    Adds the folders that are not read to ``left_out``, by the reason.
    """
    seen: set[str] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        path = os.path.join(folder, below)
        if (real := os.path.realpath(path)) in seen:
            left_out.setdefault("read under another name", []).append(below)
            continue
        seen.add(real)
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            _refuse_folder(error)
        folders = []
        for entry in entries:
            relative = f"{below}/{entry.name}" if below else entry.name
            if not _is_folder(entry):
                yield relative, entry
            elif entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                left_out.setdefault("with the name of a hidden one or of a system's", []).append(relative)
            else:
                folders.append(relative)
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _may_be_regular(entry: os.DirEntry[str]) -> bool:
    """Whether opening the entry comes to an end: a pipe may wait for ever, a link to nowhere is an error at once."""
    try:
        return entry.is_file() or stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True
