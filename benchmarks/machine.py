"""The machine of a run: its threads are pinned before anything is loaded, and it is described in the results."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PACKAGES = ("numpy", "scipy", "faiss-cpu", "triton")
_CLOCKS = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"


def pin_threads(threads: int | None) -> None:
    """All contenders get the same ``threads``, on that many cores; by default OMP_NUM_THREADS, else one a core.

    The variables are read when a library is loaded: call this before numpy and torch are imported.
    """
    cores = sorted(os.sched_getaffinity(0))
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or len(cores))
    os.environ |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    os.environ["OPENBLAS_THREAD_TIMEOUT"] = (
        "4"  # numpy's threads wait for work a tenth of a millisecond, not 100
    )
    if threads <= len(cores):
        os.sched_setaffinity(0, cores[:threads])

    import torch

    torch.set_num_threads(threads)
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(threads)


def describe(device: str) -> dict[str, Any]:
    """Processor, memory, versions and, for a GPU, driver and clocks: what a result depends on."""
    import torch
    from cpuinfo import get_cpu_info  # pytest-benchmark needs it too

    from snnet_kernels import backends

    cpu = get_cpu_info()
    flags = ", ".join(flag for flag in ("avx2", "avx512f") if flag in cpu.get("flags", ()))
    found: dict[str, Any] = {
        "device": device,
        "cpu": cpu.get("brand_raw", platform.machine()) + (f" ({flags})" if flags else ""),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "libraries": {library.name: library.detail for library in backends.backend_info().libraries},
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver_and_clocks": _nvidia_smi(),
        }
    return found


def title(machine: dict[str, Any]) -> str:
    """Its GPU, or its processor with the number of threads."""
    gpu = machine["device"] == "cuda"
    return machine["gpu"] if gpu else f"{machine['cpu']}, {machine['threads']} threads"


def slug(machine: dict[str, Any]) -> str:
    """Name of the folder of a machine's results."""
    return re.sub(r"[^a-z0-9]+", "-", title(machine).lower()).strip("-")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not answer"
