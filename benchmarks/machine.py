"""The machine of a run: its threads are pinned before anything is loaded, and it is described in the results."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def default_threads() -> int:
    """OMP_NUM_THREADS, else the cores that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(_cores()))


def pin_threads(threads: int) -> None:
    """All contenders get the same ``threads``, on that many cores.

    The variables are read when a library is loaded: to be called before numpy and torch are imported.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    cores = sorted(_cores())
    if hasattr(os, "sched_setaffinity") and threads <= len(cores):
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

    from snnet_kernels import backends

    found: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(_memory_bytes() / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "libraries": {library.name: library.detail for library in backends.backend_info().libraries},
        "versions": _versions("numpy", "scipy", "faiss-cpu", "triton"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver_and_clocks": _nvidia_smi(),
        }
    return found


def slug(machine: dict[str, Any]) -> str:
    """Name of the folder of a machine's results: its GPU, or its processor with the number of threads."""
    name = machine["gpu"] if machine["device"] == "cuda" else f"{machine['cpu']} {machine['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1).strip() if found else platform.machine()
    flags = [flag for flag in ("avx2", "avx512f") if re.search(rf"\b{flag}\b", text)]
    return f"{name} ({', '.join(flags)})" if flags else name


def _memory_bytes() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _nvidia_smi() -> str:
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not answer"
    return answer.stdout.strip()
