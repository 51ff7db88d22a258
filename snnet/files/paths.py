"""Folders of the user's: ``~``, and where files are kept from one command to the next."""

from __future__ import annotations

import os
from pathlib import Path

from snnet.errors import UserError


def expand_home(path: str) -> str:
    """``path`` with the user's home for a leading ``~``.

    Raises :class:`~snnet.errors.UserError` where the system does not know it, as in a container without HOME.
    """
    if path.split("/")[0] != "~":
        return os.path.expanduser(path)
    found = os.path.expanduser(path)
    if os.environ.get("HOME") == "" or not os.path.isabs(found):
        raise UserError(f"{path}: there is no home folder to put for ~: set HOME, or give the whole path")
    return found


def cache_folder() -> Path:
    """``$SNNET_CACHE``, else ``~/.cache/snnet``."""
    named = os.environ.get("SNNET_CACHE")
    try:
        return Path(expand_home(named or "~/.cache/snnet"))
    except UserError as error:
        raise UserError(
            f"no folder to keep files in: set SNNET_CACHE to one, or HOME, to which {named or '~/.cache/snnet'} belongs"
        ) from error
