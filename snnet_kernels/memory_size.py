"""How much memory a device has left, for buffers that may be large."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

ENTRIES_AT_ONCE = 2**22  # of a matrix, where work on them takes some 70 bytes for each


def row_parts(rows: int, width: int) -> list[slice]:
    """All of so many rows of a matrix in order: as many at a time as have :data:`ENTRIES_AT_ONCE` entries, or one."""
    step = max(1, ENTRIES_AT_ONCE // max(1, width))
    return [slice(first, first + step) for first in range(0, rows, step)]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``, those that torch's allocator holds unused included."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return _available_memory()


def check_room(num_instances: int, needed: int, device: torch.device) -> None:
    """Raise MemoryError where a pseudo label memory of ``needed`` bytes does not fit."""
    free = free_memory(device) if device.type != "meta" else needed
    if needed > free:
        raise MemoryError(
            f"num_instances={num_instances} needs {needed / 2**30:.1f} GiB for the pseudo label memory, "
            f"{free / 2**30:.1f} GiB are free"
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


# What the files of a control group are called, by the version of its hierarchy: limits (past memory.high a process is
# slowed down until it seems to stand still), usage, and the entry of the file cache.
_FILES = {
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}


def _container_memory(process: Path = Path("/proc/self")) -> int:
    """Bytes left under the memory limits of this process's control groups, their file cache counting as free.

    A group counts under the limits of all its ancestors, too: the least of what they leave is what there is.
    ``sys.maxsize`` where nothing is limited.
    """
    left = sys.maxsize
    for version, group, root in _groups(process):
        limit_files, usage_file, cache_name = _FILES[version]
        for folder in (group, *group.parents):
            for limit_file in limit_files:
                try:
                    limit = int((folder / limit_file).read_text(encoding="ascii"))
                    used = int((folder / usage_file).read_text(encoding="ascii"))
                    cached = _entry(folder / "memory.stat", cache_name)
                except (OSError, ValueError):  # no limit ("max"), or none of its files, as in the root
                    continue
                left = min(left, max(0, limit - used + cached))
            if folder == root:
                break
    return left


def _groups(process: Path) -> list[tuple[int, Path, Path]]:
    """Version, folder and mount point of each hierarchy that can limit memory: of version 2, of version 1, or both."""
    try:
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        memberships = (process / "cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    paths: dict[int, str] = {}
    for line in memberships:  # "0::/path", or of version 1 "4:memory,cpu:/path"
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    found = []
    for line in mounts:  # "36 35 0:30 ROOT POINT options ... - cgroup2 cgroup2 rw,memory"
        fields, _, rest = line.partition(" - ")
        words, kind = fields.split(" "), rest.split(" ")
        version = 2 if kind[0] == "cgroup2" else 1 if kind[0] == "cgroup" else 0
        if version not in paths or (version == 1 and "memory" not in kind[-1].split(",")):
            continue
        root, point = words[3], Path(words[4])
        # A container may see only its own part of the hierarchy, whose paths the kernel still gives from the top.
        below = os.path.relpath(paths[version], root)
        inside = not below.startswith("..")
        found.append((version, point / below if inside else point, point))
    return found


def _entry(path: Path, name: str) -> int:
    """The value of the line "name value"; 0 where there is none."""
    lines = path.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
