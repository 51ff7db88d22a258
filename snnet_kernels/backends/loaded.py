"""Loading of the compiled libraries.

``SNNET_CPU_ISA`` forces the instruction set of the CPU library: ``baseline``, ``avx2`` or ``avx512``. By default the
widest that the processor supports is used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import warnings
from dataclasses import dataclass

import torch

from ..libraries import load_library
from . import table
from .usable import LOWEST_CAPABILITY, LOWEST_FOR_TRITON, has_code_for, triton_problem

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_LIBRARIES = {"cpu": "_C", "cuda": "_C_cuda"}


@dataclass(frozen=True)
class LibraryInfo:
    """One compiled library: whether it loaded, else why not; what it was built with and for; and its file."""

    name: str
    loaded: bool
    detail: str
    path: pathlib.Path | None = None


@dataclass(frozen=True)
class BackendInfo:
    """What :func:`backend_info` found; ``print`` it for a table."""

    forced: str | None
    libraries: tuple[LibraryInfo, ...]

    @property
    def operations(self) -> dict[str, dict[str, str]]:
        """The backend of each operation for ``cpu`` and for ``cuda`` tensors, those on the current device.

        Of two names, such as ``cuda, triton``, the first runs calls that give the similarities, or need few, and losses
        of few hard negatives; the second runs all others. ``reference`` is plain PyTorch, but for one thing: in
        "tf32x3" precision Triton serves ``memory_similarity``. To read this starts CUDA, if it is there. Where it does
        not start, this is what the libraries would serve.
        """
        served = {device: servers_on(torch.device(device)) for device in ("cpu", "cuda")}
        return {
            name: {device: ", ".join(names[name]) for device, names in served.items()}
            for name in sorted(served["cpu"])
        }

    def __str__(self) -> str:
        lines = [f"snnet_kernels on torch {torch.__version__}"]
        if self.forced:
            lines.append(f"SNNET_BACKEND={self.forced}")
        for library in self.libraries:
            state = "loaded" if library.loaded else "not loaded"
            place = f" ({library.path})" if library.path else ""
            lines.append(f"  {library.name:<8} {state}: {library.detail}{place}")
        if problem := triton_problem():
            lines.append(f"  triton   not used: {problem}")
        lines.append(f"  {'operation':<28} {'cpu':<10} cuda")
        for name, devices in self.operations.items():
            lines.append(f"  {name:<28} {devices['cpu']:<10} {devices['cuda']}")
        return "\n".join(lines)


def _cpu_library() -> ctypes.CDLL:
    if "_C" not in _libraries:
        raise OSError("the compiled CPU library is not loaded")
    return _libraries["_C"]


def instruction_set() -> str:
    """The instruction set that the compiled CPU library uses.

    Results are the same with each, except products with the baseline of x86.
    """
    function = _cpu_library().snnet_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


def select_instruction_set(name: str) -> str:
    """Make the compiled CPU library use another instruction set, as ``SNNET_CPU_ISA`` does at import."""
    function = _cpu_library().snnet_select_instruction_set
    function.restype = ctypes.c_bool
    if not function(name.encode()):
        known = ", ".join(INSTRUCTION_SETS)
        raise ValueError(f"SNNET_CPU_ISA must be one of {known} that this processor has, got {name!r}")
    return name


def _register(path: pathlib.Path) -> ctypes.CDLL:
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


def _load(stem: str) -> LibraryInfo:
    try:
        path, library = load_library(stem, PACKAGE, _register)
    except ImportError as error:
        return LibraryInfo(stem, False, str(error))
    _libraries[stem] = library
    library.snnet_describe_build.restype = ctypes.c_char_p
    detail = library.snnet_describe_build().decode()
    if stem == "_C":
        forced = os.environ.get("SNNET_CPU_ISA")
        detail += f", {select_instruction_set(forced) if forced else instruction_set()}"
    return LibraryInfo(stem, True, detail, path)


def _load_all() -> tuple[LibraryInfo, ...]:
    if table.FORCED == "reference":
        return tuple(LibraryInfo(stem, False, "SNNET_BACKEND=reference") for stem in _LIBRARIES.values())
    loaded = {"cpu": _load("_C")}
    if torch.version.cuda is None:
        loaded["cuda"] = LibraryInfo("_C_cuda", False, "this torch is built without CUDA")
    else:
        loaded["cuda"] = _load("_C_cuda")
    if table.FORCED in loaded and not loaded[table.FORCED].loaded:
        raise ImportError(
            f"SNNET_BACKEND={table.FORCED}, but {loaded[table.FORCED].name} is {loaded[table.FORCED].detail}"
        )
    if table.FORCED == "triton" and (problem := triton_problem()):
        raise ImportError(f"SNNET_BACKEND=triton, but Triton cannot be used: {problem}")
    return tuple(loaded.values())


def _lacking(library: LibraryInfo) -> bool:
    """Whether a library that this machine has use for did not load."""
    return not library.loaded and (library.name == "_C" or torch.cuda.device_count() > 0)


_libraries: dict[str, ctypes.CDLL] = {}
_LOADED = _load_all()
if table.FORCED is None and (_missing := [library for library in _LOADED if _lacking(library)]):
    # One warning for both libraries, which are installed together. It names line 0: Python prints no source line.
    warnings.warn_explicit(
        f"snnet_kernels: the compiled library {_missing[0].name} is {_missing[0].detail}; plain PyTorch serves",
        UserWarning,
        __file__,
        0,
    )


@functools.cache
def without_code(device: int) -> frozenset[str]:
    """The GPU backends that are there but have no code for this device, -1 for none; warns of each."""
    if device < 0:
        return frozenset()
    (library,) = (library for library in _LOADED if library.name == "_C_cuda")
    architectures = library.detail.partition(" for ")[2].partition(",")[0]
    capability = torch.cuda.get_device_capability(device)
    number = f"{capability[0]}.{capability[1]}"
    advice = f" (install with {number} in TORCH_CUDA_ARCH_LIST to compile for it)"
    found = {}
    if library.loaded and not has_code_for(capability, architectures):
        can_be_compiled = capability >= LOWEST_CAPABILITY
        found["cuda"] = f"the CUDA library is compiled for {architectures}", advice if can_be_compiled else ""
    if table.AVAILABLE["triton"] and capability < LOWEST_FOR_TRITON:
        lowest = ".".join(map(str, LOWEST_FOR_TRITON))
        found["triton"] = f"Triton compiles for compute capability {lowest} and later", ""
    for reason, advice in found.values():
        warnings.warn(
            f"snnet_kernels: {reason}, and cuda:{device} has compute capability {number}: other kernels serve{advice}",
            stacklevel=2,
        )
    return frozenset(found)


def _current_device() -> int:
    """The number of the current CUDA device; -1 where CUDA does not start."""
    try:
        return torch.cuda.current_device()
    except RuntimeError:  # another process has the device to itself, or it has failed
        return -1


def servers_on(device: torch.device) -> dict[str, tuple[str, ...]]:
    """The backends that run each operation on a device: see :func:`.table.servers`."""
    from ..ops.operation import OPERATIONS  # it needs this package first

    number = -1
    if device.type == "cuda" and torch.cuda.is_available():
        number = _current_device() if device.index is None else device.index
    lacking = without_code(number)
    return {name: table.servers(name, device.type, lacking) for name in OPERATIONS}


def backend_info() -> BackendInfo:
    """The loaded libraries and, for each operation, the backend that serves it on CPU and CUDA tensors."""
    return BackendInfo(table.FORCED, _LOADED)
