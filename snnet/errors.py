"""The one kind of error that is the user's to mend, and how a command reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave cannot be used: a flag, a folder, a file.

    The message is one line that names it, says what came and what is needed. Commands print it as
    ``error: ...`` and exit with status 2; a program that calls the functions catches it like any exception.
    """


def run_command(main: Callable[[], None]) -> None:
    """Run the ``main`` of a command; a :class:`UserError` becomes one line on stderr and exit status 2.

    So does a path that may not be looked at, wherever it was met, and a call that the backend that the environment
    forces does not serve. What a terminal cannot show, as in file names that are no UTF-8, is printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not every stand-in for a stream has it
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as error:
        if error.filename is None:
            raise
        print(f"error: cannot read {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except NotImplementedError as error:
        if not str(error).startswith("SNNET_BACKEND="):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
