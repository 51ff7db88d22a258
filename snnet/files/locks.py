"""Locks on open files, which end with the process that has them."""

from __future__ import annotations

import errno
import os

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


def lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed. False: another process has the lock; None: the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def hold(descriptor: int) -> None:
    """Keep a descriptor for this process alone: a forked worker that outlives it must not keep the lock."""
    _held.add(descriptor)


def let_go(descriptor: int) -> None:
    """Close a descriptor of :func:`hold`, which ends its lock; nothing where it is closed already."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _close_in_child() -> None:
    for descriptor in tuple(_held):
        let_go(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
