"""Whether a folder can be written to, for a command to ask before its work."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from snnet.errors import UserError


def check_folder(folder: Path, flag: str) -> None:
    """Raise :class:`~snnet.errors.UserError` unless files can be written to ``folder``, which may be new.

    That is tried, since permissions do not tell it of every file system; nothing is left behind.
    """
    new = []
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {folder}: must be a folder that can be written to ({error.strerror})"
        ) from error
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
