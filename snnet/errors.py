"""Errors that the user can fix, and the end of another process."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user gave cannot be used: a flag, a folder, a file.

    The message is one line: it names the thing, what was given, and what is needed. Commands print it as ``error: ...``
    and exit with status 2. A program that calls the functions can catch it like any exception.
    """


class ProcessesEnded(Exception):
    """Another process of the same command has ended, and has printed its own error; or it has never come."""
