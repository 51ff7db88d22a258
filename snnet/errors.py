"""The one kind of error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot be used: a flag, a folder, a file.

    The message is one line that names it, says what came and what is needed. Commands print it as
    ``error: ...`` and exit with status 2; a program that calls the functions catches it like any exception.
    """


class ProcessesEnded(Exception):
    """Another one of the processes that run a command together has ended, with an error that it told itself."""
