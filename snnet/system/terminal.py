"""What a command prints: text that cannot act on the terminal, to streams that may be gone or full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import unicodedata
from typing import TextIO

_lost = False  # whether lines for stdout were lost
_rank: int | None = None  # of this process among several


class OutputLost(Exception):
    """stdout does not take the answer of a command; ``error`` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to stdout: {error.strerror or error}")
        self.reader_gone = error.errno == errno.EPIPE


def printable(text: object) -> str:
    """``text`` as one line that is safe to print, for names and values that somebody else has chosen.

    Characters that move the cursor, start an escape sequence, turn the direction of writing, end a line or cannot be
    seen become escapes as in Python's strings, and so do the bytes of a name that are no UTF-8.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)


def speak_as(rank: int | None) -> None:
    """Let this process be one of several: rank 0 alone tells and answers, the others name their rank in errors.

    None: let it be the only one.
    """
    global _rank
    _rank = rank


def speaker() -> str:
    """What errors and warnings of this process begin with."""
    return f"rank {_rank}: " if _rank else ""


def tell(*lines: object) -> None:
    """Print lines, each through :func:`printable`, at once; a stdout that is gone or full stops no command.

    Where it is full, a warning says so once.
    """
    global _lost
    try:
        _print(lines)
    except OSError as error:
        if not _lost and error.errno != errno.EPIPE:
            complain(f"warning: lines for stdout are lost: {error.strerror or error}")
        _lost = True


def answer(*lines: object) -> None:
    """Print what a command was asked for, each line through :func:`printable`; :class:`OutputLost` where that fails."""
    try:
        _print(lines)
    except OSError as error:
        raise OutputLost(error) from error


def complain(line: object) -> None:
    """Print an error or a warning on stderr, through :func:`printable`; where that is gone there is nobody to tell."""
    with contextlib.suppress(OSError):
        print(printable(f"{speaker()}{line}"), file=sys.stderr, flush=True)


def open_streams() -> None:
    """Give a command that was started without stdin, stdout or stderr (``>&-``) the null device in their place.

    Otherwise the first file that it opens would get their number, and with it what a library writes to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def escape_what_cannot_be_encoded() -> None:
    """Print characters that the terminal's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not every stand-in for a stream has it
            stream.reconfigure(errors="backslashreplace")


def close_streams() -> None:
    """Write what the streams still hold; :class:`OutputLost` where stdout fails now and did not before.

    Python itself would report a failure at its very end, and change the exit status.
    """
    failure = _drain(sys.stdout)
    _drain(sys.stderr)
    if failure is not None and not _lost:
        raise OutputLost(failure)


def _print(lines: tuple[object, ...]) -> None:
    if not _rank:
        print("\n".join(map(printable, lines)), flush=True)


def _drain(stream: TextIO) -> OSError | None:
    """Flush a stream; where that fails, return why, and send what it holds to the null device."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # a stand-in for a stream has no number
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        return error
    return None
