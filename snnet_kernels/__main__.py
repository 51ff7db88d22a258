"""``python -m snnet_kernels``: what is loaded and which backend serves each operation."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from . import backend_info


def main(arguments: Sequence[str] = ()) -> int:
    """The exit status: 141 where the reader of the output has ended (``| head``), 2 where it cannot be written or
    where arguments are given."""
    parser = argparse.ArgumentParser(
        "python -m snnet_kernels", description="Print what is loaded and which backend serves each operation."
    )
    unknown = parser.parse_known_args(arguments)[1]
    if unknown:
        print(
            f"error: unexpected argument {unknown[0]!r}: python -m snnet_kernels takes none", file=sys.stderr
        )
        return 2
    try:
        if sys.stdout is None:  # it was closed when Python started
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(backend_info(), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left once more at its end
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"error: cannot write to stdout: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
