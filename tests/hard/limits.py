"""Bounds on what a process may take, so that what goes wrong does not take the machine with it."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def state_and_time(pid: int) -> tuple[str, float]:
    """The state of a process as in ``ps``, and the seconds of CPU time that it has used; "Z" and 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "Z", 0.0
    fields = text.rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Inside the block this process can have at most ``more`` bytes of address space beside what it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
