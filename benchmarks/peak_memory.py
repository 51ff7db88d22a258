"""Peak memory of one call beyond what was there before it, its results included; and its processor time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from .clock import Call

PATIENCE = 120  # seconds
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Bytes at the peak of ``call``, or None where this system does not tell."""
    if device.type == "cuda":
        return _peak_of_allocator(call, device)
    return _in_child(call) if _CLEAR_REFS.exists() else None


class Watch:
    """Watches one call in this process, between :meth:`start` and :meth:`found`: for calls too long to repeat."""

    def __init__(self, *, memory: bool = True) -> None:
        self.memory = memory and _CLEAR_REFS.exists()

    def start(self) -> None:
        """What earlier calls have freed goes back to the system first; else it could serve this one unseen."""
        if self.memory:
            ctypes.CDLL(None).malloc_trim(0)
            _CLEAR_REFS.write_text("5")  # the peak starts anew from the present size
            self._resident = _resident("VmRSS")
        self._seconds = _processor_seconds()

    def found(self) -> dict[str, Any]:
        """``cpu_seconds`` of all processors, and ``peak_bytes`` if memory is asked for and this system tells."""
        found: dict[str, Any] = {"cpu_seconds": _processor_seconds() - self._seconds}
        if self.memory:
            found["peak_bytes"] = max(0, _resident("VmHWM") - self._resident)
        return found


def _peak_of_allocator(call: Call, device: torch.device) -> int:
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _in_child(call: Call) -> int | None:
    """The peak of resident memory in a forked copy of this process, which has all inputs at hand."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(call, sending, torch.get_num_threads()), daemon=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forking beside threads
        child.start()
    sending.close()
    try:
        return receiving.recv() if receiving.poll(PATIENCE) else None
    except EOFError:  # the call has failed there
        return None
    finally:
        child.kill()
        child.join()


def _answer(call: Call, sending: Connection, threads: int) -> None:
    """Runs in the child.

    malloc gives freed memory back at once; else the call could be served from it, and its peak would be too low.
    """

    def measure() -> None:
        torch.set_num_threads(threads)
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, 0)
        call()  # what libraries keep for themselves is there before
        watch = Watch()
        watch.start()
        call()
        sending.send(watch.found()["peak_bytes"])

    # A thread of its own: the OpenMP threads of the one that forked were not copied.
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
