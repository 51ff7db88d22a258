"""The CUDA sources, unmodified, on CPU tensors: compiled with g++ against the headers of this folder.

``emulation()`` builds all of ``csrc/cuda`` once (kept under ``build/cuda_on_cpu`` by the hash of what went in) and
registers it, so that ``torch.ops.snnet_cuda.*`` run on CPU tensors. A mutant, the same sources after edits, goes to
a namespace of its own; those that the tests share are in ``mutants.py``. What the emulation checks is told in
``fibres.h``.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pytest
import torch

from snnet_kernels.backends import cuda_library

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
SOURCES = ROOT / "csrc"
BUILDS = ROOT / "build" / "cuda_on_cpu"
TORCH = pathlib.Path(torch.__file__).parent
COMPILE = (
    *("-x", "c++", "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
    # Reported by handlers in cuda_runtime.h: no runtime library of the sanitizer is linked.
    *("-fsanitize=bounds,alignment", "-fsanitize-recover=bounds,alignment"),
    "-U_FORTIFY_SOURCE",  # its longjmp takes a switch of fibres for an error
    "-Wno-unknown-pragmas",
    *("-DSNNET_CUDA_ON_CPU", "-DSNNET_DEVICE_KEY=CPU", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
    *("-isystem", str(TORCH / "include"), "-I", str(HERE)),
)
LINK = ("-shared", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10")


@dataclass(frozen=True)
class Emulation:
    """A loaded build: its operations (``torch.ops.<namespace>``) and the switches of the emulation."""

    operations: torch._ops._OpNamespace
    library: ctypes.CDLL

    def seed(self, seed: int, blocks_at_once: int = 1) -> None:
        """Draw the order of blocks and threads of what follows from ``seed``; so many blocks take turns."""
        self.library.cuda_on_cpu_seed(ctypes.c_uint64(seed))
        self.library.cuda_on_cpu_blocks_at_once(ctypes.c_int64(blocks_at_once))

    def launches(self) -> int:
        """Kernel launches since the last call."""
        return self.library.cuda_on_cpu_launches()

    def most_shared(self, size: int) -> None:
        """Bytes of shared memory that a block of the emulated device can have."""
        self.library.cuda_on_cpu_most_shared(ctypes.c_int64(size))

    def leave_out(self, number: int) -> None:
        """Run a mutant of barriers without its barrier ``number``; with all of them for -1, as at first."""
        self.library.cuda_on_cpu_leave_out(ctypes.c_int64(number))


def compiler() -> str:
    """The compiler, or a skipped test."""
    found = os.environ.get("CXX") or "g++"
    if platform.system() != "Linux" or shutil.which(found.split()[0]) is None:
        pytest.skip(f"the emulation of CUDA needs Linux and a C++ compiler ({found} is not here)")
    return found


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-8000:]}")


def _in_place(target: pathlib.Path, make: Callable[[str], None]) -> pathlib.Path:
    """Make a file beside ``target`` and move it there; another process that wants the same waits for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                part = os.path.join(folder, target.name)
                make(part)
                os.replace(part, target)
    return target


def build(sources: Iterable[pathlib.Path], headers: Iterable[pathlib.Path], *flags: str) -> pathlib.Path:
    """A shared library of ``sources``, compiled with ``flags`` unless it is there from an earlier session.

    They are one translation unit: most of the time of each would go into torch's headers.
    """
    cxx, sources = compiler(), list(sources)
    version = subprocess.run([*cxx.split(), "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in [*sorted({*headers, *HERE.glob("*.h")}), *sources]]

    def compile_and_link(part: str) -> None:
        unit = pathlib.Path(part).with_suffix(".cu")
        unit.write_text("".join(f'#include "{source}"\n' for source in sources))
        _run([*cxx.split(), *COMPILE, *flags, str(unit), *LINK, "-o", part])

    digest = _digest(version, torch.__version__, *COMPILE, *LINK, *flags, *texts)
    return _in_place(BUILDS / f"lib{digest}.so", compile_and_link)


def load(library: pathlib.Path, namespace: str) -> Emulation:
    torch.ops.load_library(str(library))
    loaded = ctypes.CDLL(str(library))
    loaded.cuda_on_cpu_launches.restype = ctypes.c_int64
    return Emulation(getattr(torch.ops, namespace), loaded)


def cuda_sources(folder: pathlib.Path = SOURCES) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The CUDA sources under ``folder`` (a csrc) and the headers they may include."""
    headers = [path for part in ("common", "cuda") for path in sorted((folder / part).glob("*.*h"))]
    return sorted((folder / "cuda").glob("*.cu")), headers


def emulation() -> Emulation:
    """All of csrc/cuda as ``torch.ops.snnet_cuda`` on CPU tensors."""
    return load(build(*cuda_sources()), "snnet_cuda")


def mutant(edits: Mapping[str, Callable[[str], str]], *sources: str) -> Emulation:
    """``sources`` of csrc/cuda after ``edits`` of its files, in a namespace of their own.

    An edit gets the text of its file and must change it.
    """
    with tempfile.TemporaryDirectory() as folder:
        csrc = pathlib.Path(folder) / "csrc"
        shutil.copytree(SOURCES, csrc)
        for file, edit in edits.items():
            path = csrc / "cuda" / file
            before = path.read_text()
            path.write_text(edit(before))
            assert path.read_text() != before, f"the edit of {file} changed nothing"
        edited = [(csrc / "cuda" / file).read_text() for file in edits]
        namespace = f"snnet_cuda_{_digest(*sources, *edits, *edited)}"
        library = torch.library.Library(namespace, "DEF")
        for schema in cuda_library.SCHEMAS:
            library.define(schema)
        _KEPT.append(library)
        compiled = [csrc / "cuda" / source for source in sources]
        return load(build(compiled, cuda_sources(csrc)[1], f"-Dsnnet_cuda={namespace}"), namespace)


_KEPT: list[torch.library.Library] = []  # a schema goes when its Library does
