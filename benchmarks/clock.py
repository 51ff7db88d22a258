"""The clocks: what pytest-benchmark reads before and after each call, and the sweep that makes a call a cold one."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]
# GPU cycles, 2 to 3 ms: what the host has to enqueue a call, which can be fifty launches and operations of torch.
ENQUEUE_AHEAD = 5_000_000


class CpuClock:
    """The host's clock."""

    def __init__(self) -> None:
        self._swept = torch.ones(2 * _last_level_cache_bytes() // 4)

    def __call__(self) -> float:
        """Seconds; the difference of two calls is the time between them."""
        return time.perf_counter()

    def sweep(self) -> None:
        """Fill the processor's last cache with something else."""
        self._swept.sum()

    def cold(self, call: Call) -> float:
        """Seconds of ``call`` after a sweep."""
        self.sweep()
        return self.warm(call)

    def warm(self, call: Call) -> float:
        """Seconds of ``call`` as things are."""
        start = self()
        call()
        return self() - start


class CudaClock(CpuClock):
    """Events on the current stream, and a synchronisation before they are read.

    The device is kept busy while the host enqueues the call, so that what is timed is the device's work and not
    the launches; a call that waits for the device in its middle pays for that.
    """

    def __init__(self, device: torch.device) -> None:
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._swept = torch.ones(2 * cache_bytes // 4, device=device)
        self._sum = torch.empty((), device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._runs = False

    def __call__(self) -> float:
        """Calls come in pairs.

        The first starts the clock and returns 0, the second stops it and returns the seconds between.
        """
        self._runs = not self._runs
        if self._runs:
            torch.cuda._sleep(ENQUEUE_AHEAD)
            self._start.record()
            return 0.0
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def sweep(self) -> None:
        self._runs = False  # a call that failed may have left the clock running
        torch.sum(self._swept, 0, out=self._sum)


@cache
def clock_of(device: torch.device) -> CpuClock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _last_level_cache_bytes() -> int:
    """Bytes of the largest cache that the system tells of; 32 MiB where it does not."""
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=32 << 20)
