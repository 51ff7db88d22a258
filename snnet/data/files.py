"""Finding things on disk: a dataset's folder, the images under it, the numbers in their names."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from snnet.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


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
    for folder in _candidates(data_dir, folder_names):
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
    """The path of the first of ``names`` that lies in ``folder``, whatever its case; None without one."""
    present = {entry.lower(): entry for entry in sorted(_entries(folder), reverse=True)}
    for name in names:
        if name.lower() in present:
            return os.path.join(folder, present[name.lower()])
    return None


def _candidates(data_dir: str, folder_names: Sequence[str]) -> Iterator[str]:
    """``data_dir``, then what lies below it under one of ``folder_names``, nearest first."""
    order = {_plain(name): position for position, name in enumerate(folder_names)}
    waiting = deque([(data_dir, 0)])
    while waiting:
        folder, depth = waiting.popleft()
        yield folder
        if depth < 2:
            named = [entry for entry in sorted(_entries(folder)) if _plain(entry) in order]
            for entry in sorted(named, key=lambda entry: order[_plain(entry)]):
                if os.path.isdir(path := os.path.join(folder, entry)):
                    waiting.append((path, depth + 1))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name.lower())


def _listing(splits: Sequence[Sequence[str]]) -> str:
    return ", ".join(" or ".join(names) for names in splits)


def list_images(name: str, folder: str) -> list[str]:
    """Every image below ``folder``, as sorted paths relative to it with "/" between the parts.

    What has another extension (``Thumbs.db``) or a name that starts with "." is no image. Links to folders
    are followed, each folder being read once.

    Raises:
        UserError: there is none, or a folder cannot be read.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(parent)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(entry for entry in subfolders if not entry.startswith("."))
        relative = os.path.relpath(parent, folder)
        found += [
            file if relative == "." else f"{relative}/{file}".replace(os.sep, "/")
            for file in files
            if file.lower().endswith(IMAGE_EXTENSIONS) and not file.startswith(".")
        ]
    if not found:
        extensions = ", ".join(IMAGE_EXTENSIONS)
        raise UserError(f"dataset {name}: the folder {folder!r} holds no image ({extensions})")
    return sorted(found)


def strip_extensions(file: str) -> str:
    """The name without its image extension, or extensions: some Market-1501 files end in ``.jpg.jpg``."""
    while (parts := os.path.splitext(file))[1].lower() in IMAGE_EXTENSIONS:
        file = parts[0]
    return file


@dataclass(frozen=True)
class NamePattern:
    """A regular expression with the groups ``pid`` and ``cam`` (either may be missing), searched in names."""

    text: str
    pid_required: bool = True

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.text).groupindex
        except re.error as error:
            raise UserError(f"name pattern {self.text!r} is not a regular expression: {error}") from error
        wanted = "pid" if self.pid_required else "cam"
        if wanted not in groups:
            raise UserError(f"name pattern {self.text!r} needs a group (?P<{wanted}>...)")

    def parse(self, name: str, folder: str, files: Sequence[str]) -> dict[str, list[str]]:
        """What the groups matched in each of ``files``: lists under "pid" and "cam", if it has that group.

        Raises:
            UserError: a name does not match; the first is named.
        """
        expression = re.compile(self.text)
        values: dict[str, list[str]] = {key: [] for key in ("pid", "cam") if key in expression.groupindex}
        for file in files:
            match = expression.search(file)
            if match is None or any(match[key] is None for key in values):
                path = os.path.join(folder, file)
                raise UserError(f"dataset {name}: the name of {path!r} does not match {self.text!r}")
            for key, column in values.items():
                column.append(match[key])
        return values


def to_numbers(columns: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """int64 numbers for the strings of several splits, the same string always the same number.

    Where all are integers these are the numbers; otherwise the distinct strings are counted from 0, sorted.
    """
    distinct = sorted({value for column in columns for value in column})
    if all(re.fullmatch(r"-?[0-9]{1,18}", value) for value in distinct):
        number = {value: int(value) for value in distinct}
    else:
        number = {value: position for position, value in enumerate(distinct)}
    return [np.array([number[value] for value in column], dtype=np.int64) for column in columns]
