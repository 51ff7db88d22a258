"""The memory that a call takes, read from Linux's /proc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc"
)


def resident_bytes(field: str) -> int:
    """``VmRSS``, or the most since it was last reset, ``VmHWM``, of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes that were resident during the call beside those before it and its result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from the present size
    before = resident_bytes("VmRSS")
    result = call()
    peak = resident_bytes("VmHWM") - before
    tensors = result if isinstance(result, tuple) else (result,)
    return peak - sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
