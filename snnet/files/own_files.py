"""Which files a command has written, and which are the reader's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from snnet.errors import UserError

# Each stands near the beginning of the files of its command.
REPORT_MARK, SEARCH_MARK = (f"written by python -m snnet.{command}" for command in ("report", "search"))
# The pictures of a report, and the one of a search unless it is given another name.
REPORT_PICTURES = (
    "loss.png", "retrieval.png", "label_quality.png", "label_agreement.png", "positives.png", "seconds.png",
    "ranked_lists.png", "failures.png", "pseudo_labels.png",
)  # fmt: skip
SEARCH_PICTURE = "matches.png"
_MARKS = {**dict.fromkeys(REPORT_PICTURES, REPORT_MARK), SEARCH_PICTURE: SEARCH_MARK}


def is_own(path: Path, mark: str) -> bool:
    """Whether the file ``path`` has the mark. A link, though to a file that has it, is someone else's."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with open(path, "rb") as file:
        return mark.encode() in file.read(1024)


def is_own_picture(entry: os.DirEntry[str]) -> bool:
    """Whether the file is a picture of a report or a search under its usual name: others are not opened."""
    mark = _MARKS.get(entry.name)
    try:
        return mark is not None and is_own(Path(entry.path), mark)
    except OSError:
        return False


def check_own(path: Path, mark: str, way_out: str) -> None:
    """Raise :class:`~snnet.errors.UserError` where ``path`` exists, but has not the mark."""
    try:
        if is_own(path, mark):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    raise UserError(f"{path} is in the way: it was not {mark}; move it, or name {way_out}")
