"""Whether what is installed can run here: Triton, and the compiled CUDA library on a device."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shutil
import sysconfig

LOWEST_CAPABILITY = 7, 5  # that the CUDA library is tested to compile for
LOWEST_FOR_TRITON = 7, 0


def triton_problem() -> str | None:
    """Why Triton launches nothing here, None if it does. It compiles a part of itself in C before its first launch."""
    if importlib.util.find_spec("triton") is None:
        return "it is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "it needs a C compiler"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton looks for it
    if not pathlib.Path(sysconfig.get_path("include", scheme), "Python.h").is_file():
        return "it needs the headers of Python"
    return None


def has_code_for(capability: tuple[int, int], architectures: str) -> bool:
    """Whether a library compiled for ``architectures``, such as "8.0 9.0 10.0+PTX", runs on a device.

    Code runs on later devices of the same major number, PTX on all later ones; what is for "9.0a" on that one alone.
    Of architectures that have no numbers nothing is known: true.
    """
    known = re.findall(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architectures)
    for major, minor, special, ptx in known:
        own = int(major), int(minor)
        if own == capability or (not special and own < capability and (ptx or own[0] == capability[0])):
            return True
    return not known
