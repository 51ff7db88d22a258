"""How a command runs, and how it reports an error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from snnet.errors import ProcessesEnded, UserError
from snnet.system.launch import own_place
from snnet.system.terminal import (
    OutputLost,
    close_streams,
    complain,
    escape_what_cannot_be_encoded,
    open_streams,
)

READER_GONE = 141  # the exit status of a command that SIGPIPE ended

Result = TypeVar("Result")


def parse_early(parse: Callable[[list[str]], Result]) -> Result:
    """What ``parse`` makes of the command line, before the command's file goes on to import torch.

    So --help and a mistyped flag are answered at once. A backend that the environment forces and that is not there is
    reported here, too.
    """

    open_streams()

    def main() -> Result:
        command = parse(sys.argv[1:])
        try:
            import snnet_kernels  # noqa: F401
        except (ImportError, ValueError) as error:
            if not str(error).startswith("SNNET_"):
                raise
            raise UserError(str(error)) from error
        return command

    _, count, local_rank = own_place()
    if count == 1 or local_rank == 0:
        return run_command(main)
    # The first process of this machine says the same.
    with open(os.devnull, "w") as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
        return run_command(main)


def run_command(main: Callable[[], Result]) -> Result:
    """Run a command, or a part of it; a :class:`~snnet.errors.UserError` becomes one line on stderr and exit status 2.

    So do a path that the system refuses (no permission, a name that is too long), a call that the backend forced by the
    environment does not serve, and a stdout that does not take the answer. Where stdout has no reader any more, the
    command ends without a word. Characters that a terminal cannot show, as in file names that are no UTF-8, are printed
    as escapes.
    """
    escape_what_cannot_be_encoded()
    try:
        try:
            result = main()
        except SystemExit:  # of --help
            close_streams()
            raise
        close_streams()
        return result
    except UserError as error:
        _exit(2, f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        _exit(2, f"error: cannot use {error.filename}: {error.strerror}")
    except NotImplementedError as error:
        if not str(error).startswith("SNNET_BACKEND="):
            raise
        _exit(2, f"error: {error}")
    except ProcessesEnded as error:
        _exit(1, str(error))
    except OutputLost as error:
        if error.reader_gone:
            _exit(READER_GONE)
        _exit(2, f"error: {error}")
    except KeyboardInterrupt:
        _exit(130, "interrupted")


def _exit(status: int, line: str | None = None) -> NoReturn:
    if line is not None:
        complain(line)
    with contextlib.suppress(OutputLost):
        close_streams()
    sys.exit(status)
