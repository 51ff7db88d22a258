"""Compiled libraries: where they are, and whether they were compiled from the sources at hand.

Python takes the folder of a checkout before an installed package, wherever it starts there. So a package in a
checkout also takes the libraries that were installed elsewhere, if they were compiled from the same sources.
Every library carries a digest of its sources, which is read from the file before it is loaded: loading registers
operations for good. An installed package has no sources beside it and takes the libraries of its own folder.

``setup.py`` runs this file by itself: it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

# Folders of csrc that each library is compiled from.
SOURCES = {
    "_C": ("common", "cpu"),
    "_C_cuda": ("common", "cuda"),
    "_rank_metrics": ("metrics",),
}
_SOURCE_SUFFIXES = (".h", ".inl", ".cpp", ".cuh", ".cu")
_MARK = re.compile(rb"snnet-sources:([0-9a-f]{64})")  # csrc/common/sources.h


def sources_digest(name: str, csrc: Path) -> str | None:
    """64 hexadecimal digits that stand for the sources of library ``name``; None where they are not in ``csrc``."""
    digest = hashlib.sha256()
    for part in SOURCES[name]:
        folder = csrc / part
        files = sorted(path for path in folder.glob("*") if path.suffix in _SOURCE_SUFFIXES)
        if not files:
            return None
        for path in files:
            text = path.read_bytes()
            digest.update(f"{part}/{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def compiled_from(library: Path) -> str | None:
    """The digest of the sources that a library was compiled from; None where it carries none."""
    found = _MARK.search(library.read_bytes())
    return found.group(1).decode() if found else None


def find_libraries(name: str, package: Path) -> list[Path]:
    """The files of library ``name`` that ``package``, a folder, may load, best first.

    ImportError where there is none; it says why, and what to do.
    """
    csrc = package.parent / "csrc"
    digest = sources_digest(name, csrc)
    there = _files(name, package)
    if digest is not None:
        there += [path for entry in sys.path for path in _files(name, Path(entry, package.name))]
    there = list(dict.fromkeys(there))
    found = [path for path in there if digest is None or compiled_from(path) == digest]
    if found:
        return found
    if there:
        install = "pip install -e ." if there[0].parent == package else "pip install ."
        raise ImportError(
            f"not usable: {there[0]} was compiled from other sources than {csrc} (run `{install}` in {package.parent})"
        )
    needless = ", and needed on a GPU only" if name == "_C_cuda" else ""
    raise ImportError(f"not built for this Python{needless} (`pip install -v .` builds it, or shows why not)")


def load_library(name: str, package: Path, load: Callable[[Path], Loaded]) -> tuple[Path, Loaded]:
    """The first file of library ``name`` that loads, and what ``load`` made of it; ImportError where none does."""
    failures = []
    for path in find_libraries(name, package):
        try:
            return path, load(path)
        except (OSError, ImportError, AttributeError) as error:
            failures.append(f"{path} does not load: {error}")
    raise ImportError(failures[0])


def _files(name: str, folder: Path) -> list[Path]:
    """Files of that name that this Python can load."""
    paths = [folder.resolve() / (name + suffix) for suffix in EXTENSION_SUFFIXES]
    return [path for path in paths if os.path.isfile(path)]
