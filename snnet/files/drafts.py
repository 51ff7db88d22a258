"""Files and folders in the making: nobody can guess their names, and those of a dead process are cleared.

The process that makes a draft holds a lock on it until it ends. A draft that another process can lock is abandoned.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from snnet.files.locks import hold, let_go, lock
from snnet.system.signals import afterwards

_NAME = re.compile(r"\.snnet-[0-9a-f]{32}\.tmp")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def draft_file(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file in ``folder``, open for writing and reading; it is gone behind the block unless it was renamed.

    The call creates the file and opens none that is there: a link of that name is an error.
    """
    with (
        _draft(folder, _create_file, lambda path: path.unlink(missing_ok=True)) as (path, descriptor),
        # The lock outlives the file, which is closed before it is renamed.
        open(os.dup(descriptor), "w+b") as file,
    ):
        yield path, file


@contextlib.contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``; it is gone behind the block unless it was renamed."""
    with _draft(parent, _create_folder, lambda path: shutil.rmtree(path, ignore_errors=True)) as (path, _):
        yield path


def clear_abandoned(folder: Path) -> None:
    """Delete the drafts in ``folder`` whose makers are dead, where the file system can tell."""
    try:
        names = [name for name in os.listdir(folder) if _NAME.fullmatch(name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            _clear(folder / name)


def _clear(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | _NO_FOLLOW)  # some locks need a writer
    except IsADirectoryError:
        descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW)
    try:
        if lock(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _draft(
    folder: Path, create: Callable[[Path], int], remove: Callable[[Path], object]
) -> Iterator[tuple[Path, int]]:
    """The path of a new draft, and a descriptor that holds its lock."""
    while True:
        path = folder / f".snnet-{secrets.token_hex(16)}.tmp"
        with afterwards(functools.partial(remove, path)):
            descriptor = create(path)
            hold(descriptor)
            try:
                # Another process may have cleared it before it had its lock.
                if lock(descriptor) is not False and os.fstat(descriptor).st_nlink > 0:
                    yield path, descriptor
                    return
            finally:
                let_go(descriptor)


def _create_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)  # less the umask


def _create_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)
