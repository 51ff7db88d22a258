"""Peak memory of one call beyond what was there before it, its results included; and its processor time."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Watch:
    """Watches one call, between :meth:`start` and :meth:`found`."""

    def __init__(self, device: torch.device, *, memory: bool = True) -> None:
        self.device, self._gpu = device, device.type == "cuda"
        self._memory = memory and (self._gpu or _CLEAR_REFS.exists())

    def start(self, *, timed: bool = False) -> None:
        """The peak starts anew from the present size.

        Unless the call is ``timed``, its memory is mapped afresh: none that is still held serves it unseen.
        """
        if self._memory and not self._gpu:
            _map_pieces_of(0 if timed else 2**16)
        if self._memory:
            self._before = _from_now_on_gpu(self.device) if self._gpu else _from_now_on()
        self._seconds = _processor_seconds()

    def found(self) -> dict[str, Any]:
        """``cpu_seconds`` of all processors, and ``peak_bytes`` if memory is asked for and this system tells."""
        found: dict[str, Any] = {"cpu_seconds": _processor_seconds() - self._seconds}
        if self._memory:
            peak = torch.cuda.max_memory_allocated(self.device) if self._gpu else _resident("VmHWM")
            found["peak_bytes"] = max(0, peak - self._before)
        if self._memory and not self._gpu:
            _map_pieces_of(0)
        return found


def _map_pieces_of(mapped: int) -> None:
    """Let malloc map pieces of so many bytes for themselves; 0: as it does by itself after some large ones."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, mapped or 2**25)
    libc.mallopt(_M_TRIM_THRESHOLD, 0 if mapped else 2**26)


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
