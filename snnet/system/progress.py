"""What a command shows while it works: one kind of progress bar, and lines about what is being done.

Bars go to stderr, and only where that is a terminal. ``--quiet`` leaves out bars and lines: results, warnings
and errors remain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from snnet.system.terminal import tell

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Leave bars and lines out, or show them again, for the whole process."""
    global _quiet
    _quiet = quiet


def bars_shown() -> bool:
    """Whether a progress bar would be seen: for code that has one of its own."""
    return not _quiet and sys.stderr.isatty()


def say(*lines: str) -> None:
    """Print lines about what is being done, as :func:`~snnet.system.terminal.tell` does."""
    if not _quiet:
        tell(*lines)


def progress(
    items: Iterable[Any] | None, description: str, *, total: int | None = None, unit: str = "batch"
) -> tqdm[Any]:
    """Iterate over ``items`` behind a bar with the time that is left; it is wiped when it is full.

    Without items it is a context manager whose ``update(count)`` moves the bar. ``total`` is the number of
    items where they have no length.
    """
    return tqdm(
        items, description, total, leave=False, unit=unit, disable=not bars_shown(), dynamic_ncols=True
    )
