"""How much memory a device has left, for buffers that may be large."""

from __future__ import annotations

import os
import sys

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _available_memory()


def check_room(num_instances: int, needed: int, device: torch.device) -> None:
    """Raise MemoryError where a pseudo label memory of ``needed`` bytes does not fit."""
    free = free_memory(device) if device.type != "meta" else needed
    if needed > free:
        raise MemoryError(
            f"num_instances={num_instances} needs {needed / 2**30:.1f} GiB for the pseudo label memory "
            f"(two bit matrices), {free / 2**30:.1f} GiB are free"
        )


def _available_memory() -> int:
    """Bytes that this process can take without swapping: the machine's, or its container's if less."""
    available = _container_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # No such file outside Linux: half of what is built in, where the system tells.
        known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if known else 4 << 30
    return min(machine, available)


def _container_memory() -> int:
    """Bytes left under the limit of the control group (version 2), its file cache counting as free."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            used = int(file.read())
        with open("/sys/fs/cgroup/memory.stat", encoding="ascii") as lines:
            cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return sys.maxsize
    return max(0, limit - used + cached)
