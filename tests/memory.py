"""The memory that this process or a call in it takes, read from Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc"
)
needs_freed_memory = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps freed memory"
)


def resident_bytes(field: str) -> int:
    """``VmRSS`` of this process, or ``VmHWM``: the most since :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def forget_peak() -> None:
    """Let ``VmHWM`` of this process count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes that were resident during the call beside those before it and its result."""
    forget_peak()
    before = resident_bytes("VmRSS")
    result = call()
    peak = resident_bytes("VmHWM") - before
    tensors = result if isinstance(result, tuple) else (result,)
    return peak - sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
