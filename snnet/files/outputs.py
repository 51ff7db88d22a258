"""Files that are whole or absent; and whether one can be written, for a command to ask before its work."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from snnet.errors import UserError
from snnet.files.drafts import clear_abandoned, draft_file
from snnet.system.signals import afterwards, held

Written = TypeVar("Written")

# The errors of a file system that has no sync, or that gives no handle of a folder to sync.
_NO_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
}


def write_atomically(path: Path, write: Callable[[IO[bytes]], Written]) -> Written:
    """Replace ``path`` by what ``write`` puts into the file it is handed, or leave it untouched; returns its result.

    The bytes go to a new file in the same folder, reach the disk, and are then renamed: whoever reads ``path`` (also
    after a power cut) sees the old content or the new; of several processes the last one wins. Drafts that a killed
    process left in the folder are deleted. Raises :class:`~snnet.errors.UserError` where the folder cannot be written
    or the disk is full.
    """
    try:
        clear_abandoned(path.parent)
        with draft_file(path.parent) as (draft, file):
            written = write(file)
            file.flush()
            _sync(file.fileno())
            file.close()  # a disk over the network may be full only now
            os.replace(draft, path)
        _sync_folder(path.parent)
        return written
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """:func:`write_atomically` for text; what is no UTF-8, as file names may be, is written as escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`write_atomically` for the content of a whole file."""
    write_atomically(path, lambda file: file.write(content))


def delete(path: Path) -> None:
    """Delete a file that may be there; raises :class:`~snnet.errors.UserError` where that is not possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot delete {path}: {error.strerror or error}") from error


def check_output(
    path: Path, suffixes: Sequence[str], flag: str = "--output", read: Iterable[Path | str] = ()
) -> None:
    """Raise :class:`~snnet.errors.UserError` unless ``path`` ends in one of these and can be written.

    Nor may it be one of the files that are ``read``: they would be lost. For a command to call before its work, not
    after it.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{flag} {path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        what = "is a folder" if path.is_dir() else f"{path.parent} cannot be written to"
        raise UserError(f"{flag} {path}: {what}")
    if path.exists() and any(os.path.exists(source) and path.samefile(source) for source in read):
        raise UserError(f"{flag} {path}: the command reads this file, which would be lost: name another")


def check_disk(path: Path, size: int, what: str) -> None:
    """Raise :class:`~snnet.errors.UserError` where ``path``, --output, has no room for ``what``, of ``size`` bytes.

    For a command to call before its work, not after it. A file that is there stays until the new one is whole. Drafts
    that a killed process left in the folder are deleted first.
    """
    clear_abandoned(path.parent)
    disk = shutil.disk_usage(path.parent)
    if disk.total and disk.free < size:  # a file system that does not count says 0 of 0
        raise UserError(
            f"--output {path}: {what} take {size / 2**30:,.1f} GiB, and {path.parent} has {disk.free / 2**30:,.1f} free"
        )


def check_output_folder(folder: Path, flag: str) -> None:
    """Raise :class:`~snnet.errors.UserError` unless files can be written to ``folder``, which may be new.

    It writes one to see, since on some file systems the permissions do not tell. Nothing is left behind.
    """
    made: list[Path] = []
    with afterwards(lambda: remove_empty(made)), naming_folder(folder, flag):
        make_folder(folder, made)
        with held(), tempfile.TemporaryFile(dir=folder):  # some file systems give it a name for a moment
            pass


@contextlib.contextmanager
def naming_folder(folder: Path, flag: str) -> Iterator[None]:
    """Turn an OSError into a :class:`~snnet.errors.UserError` that says what ``folder`` has to be."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{flag} {folder}: must be a folder that can be written to ({reason})") from error


def make_folder(folder: Path, made: list[Path], *, is_new: bool = False) -> None:
    """Make ``folder`` and those above it, and put each that was not there at the front of ``made``.

    With ``is_new`` it is a FileExistsError if ``folder`` is there: of two processes only one makes it.
    """
    for path in (*reversed(folder.parents), folder):
        if path.is_dir() and not (is_new and path == folder):
            continue
        try:
            with held():
                path.mkdir()
                made.insert(0, path)
        except FileExistsError:
            # Another process was faster; where it has deleted it again, this is a FileNotFoundError.
            if (is_new and path == folder) or not stat.S_ISDIR(os.stat(path).st_mode):
                raise


def remove_empty(folders: Sequence[Path]) -> None:
    """Delete those of the folders that are empty, in order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sync_folder(folder: Path) -> None:
    """Let a rename reach the disk, where the system can be asked to. The file is in its place either way."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
