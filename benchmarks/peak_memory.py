"""Peak memory of one call beyond what was there before it, its results included; and its processor time."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Watch:
    """Watches one call, between :meth:`start` and :meth:`found`."""

    def __init__(self, device: torch.device, *, memory: bool = True) -> None:
        self.device, self._gpu = device, device.type == "cuda"
        self._memory = memory and (self._gpu or _CLEAR_REFS.exists())

    def start(self) -> None:
        """The peak starts anew from the present size."""
        if self._memory:
            self._before = _from_now_on_gpu(self.device) if self._gpu else _from_now_on()
        self._seconds = _processor_seconds()

    def found(self) -> dict[str, Any]:
        """``cpu_seconds`` of all processors, and ``peak_bytes`` if memory is asked for and this system tells."""
        found: dict[str, Any] = {"cpu_seconds": _processor_seconds() - self._seconds}
        if self._memory:
            peak = torch.cuda.max_memory_allocated(self.device) if self._gpu else _resident("VmHWM")
            found["peak_bytes"] = max(0, peak - self._before)
        return found


def _from_now_on_gpu(device: torch.device) -> int:
    """Let the peak of torch's allocator start anew; the bytes that it has given out now."""
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _from_now_on() -> int:
    """Let the peak of resident memory start anew; the bytes that are resident now.

    What earlier calls have freed goes back to the system first; else it could serve the next one unseen.
    """
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text("5")
    return _resident("VmRSS")


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
