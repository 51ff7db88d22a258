"""The CUDA sources, unmodified, on CPU tensors: compiled with g++ against the headers of this folder.

``emulation()`` builds all of ``csrc/cuda`` once (kept under ``build/cuda_on_cpu`` by the hash of what went in) and
registers it, so that ``torch.ops.snnet_cuda.*`` run on CPU tensors. A mutant, the same sources after an edit, goes to
a namespace of its own. What the emulation checks is told in ``fibres.h``.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
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

    def seed(self, seed: int) -> None:
        """Draw the order of blocks and threads of what follows from ``seed``."""
        self.library.cuda_on_cpu_seed(ctypes.c_uint64(seed))

    def launches(self) -> int:
        """Kernel launches since the last call."""
        return self.library.cuda_on_cpu_launches()

    def most_shared(self, size: int) -> None:
        """Bytes of shared memory that a block of the emulated device can have."""
        self.library.cuda_on_cpu_most_shared(ctypes.c_int64(size))


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
    """A shared library of ``sources``, each compiled with ``flags`` unless it is there from an earlier session."""
    cxx = compiler()
    version = subprocess.run([*cxx.split(), "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in sorted({*headers, *HERE.glob("*.h")})]
    common = _digest(version, torch.__version__, *COMPILE, *flags, *texts)

    def compile_one(source: pathlib.Path) -> pathlib.Path:
        target = BUILDS / f"{source.stem}-{_digest(common, source.read_bytes())}.o"
        command = [*cxx.split(), *COMPILE, *flags, "-c", str(source)]
        return _in_place(target, lambda part: _run([*command, "-o", part]))

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(compile_one, sources))
    target = BUILDS / f"lib{_digest(*(path.name for path in objects))}.so"
    command = [*cxx.split(), *map(str, objects), *LINK]
    return _in_place(target, lambda part: _run([*command, "-o", part]))


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


def mutant(
    file: str, edit: Callable[[str], str], *flags: str, folder: pathlib.Path, source: str | None = None
) -> Emulation:
    """One source of csrc/cuda after ``edit``, alone in a namespace of its own; ``folder`` is the test's.

    ``file`` is what is edited, ``source`` what is compiled (by default the ``.cu`` of the same stem). ``edit`` gets
    the text of ``file`` and must change it, unless ``flags`` are given.
    """
    csrc = folder / "csrc"
    shutil.copytree(SOURCES, csrc, dirs_exist_ok=True)
    path = csrc / "cuda" / file
    before = path.read_text()
    path.write_text(edit(before))
    assert flags or path.read_text() != before, f"the edit of {file} changed nothing"
    compiled = csrc / "cuda" / source if source else path.with_suffix(".cu")
    namespace = f"snnet_cuda_{_digest(str(compiled.name), file, path.read_text(), *flags)}"
    library = torch.library.Library(namespace, "DEF")
    for schema in cuda_library.SCHEMAS:
        library.define(schema)
    _KEPT.append(library)
    return load(build([compiled], cuda_sources(csrc)[1], f"-Dsnnet_cuda={namespace}", *flags), namespace)


def without_barrier(text: str, which: int, barrier: str = "__syncthreads();") -> str:
    """``text`` less its ``which``-th ``barrier``."""
    found = list(re.finditer(re.escape(barrier), text))[which]
    return text[: found.start()] + text[found.end() :]


_KEPT: list[torch.library.Library] = []  # a schema goes when its Library does
