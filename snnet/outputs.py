"""Files that are whole or absent; and whether one can be written, for a command to ask before its work."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from snnet.errors import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], *, one_writer: bool = False) -> None:
    """Replace ``path`` by what ``write`` puts into the file it is handed, or leave it untouched.

    The bytes go to a temporary file in the same folder, reach the disk, and are then renamed: whoever reads
    ``path`` (also after a power cut) sees the old content or the new; of several processes the last one wins.
    ``one_writer``: only this process writes ``path``, and what one that was killed left behind is written over.
    Raises :class:`~snnet.errors.UserError` where the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(path.name + (".tmp" if one_writer else f".{os.getpid()}.tmp"))
    try:
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """:func:`write_atomically` for text; what is no UTF-8, as file names may be, is written as escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`write_atomically` for the content of a whole file."""
    write_atomically(path, lambda file: file.write(content))


def check_output(path: Path, suffixes: Sequence[str], flag: str = "--output") -> None:
    """Raise :class:`~snnet.errors.UserError` unless ``path`` ends in one of these and can be written.

    For a command to call before its work, not after it.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{flag} {path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        what = "is a folder" if path.is_dir() else f"{path.parent} cannot be written to"
        raise UserError(f"{flag} {path}: {what}")


def check_output_folder(folder: Path, flag: str) -> None:
    """Raise :class:`~snnet.errors.UserError` unless files can be written to ``folder``, which may be new.

    That is tried, since permissions do not tell it of every file system; nothing is left behind.
    """
    new = []
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {folder}: must be a folder that can be written to ({error.strerror})"
        ) from error
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
