"""Matrix products in true float32, whatever the program around them asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_FLAGS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
_lock = threading.Lock()
_inside = 0  # blocks of all threads that are being run: the flags are the process's
_restore: Callable[[], None] | None = None


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and every reduced-precision float32 product (TF32, bf16) inside the block.

    A global ``torch.set_float32_matmul_precision`` or ``allow_tf32`` would flip pseudo labels near the
    threshold; the flags of the caller stand again when the last thread has left its block.
    """
    global _inside, _restore
    with _lock:
        if _inside == 0:
            _restore = _switch_off()
        _inside += 1
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _restore is not None:
                _restore()


def _switch_off() -> Callable[[], None] | None:
    """Set the flags to exact products; what sets them back, or None where nothing was changed."""
    before = [flag.fp32_precision for flag in _FLAGS]
    if all(precision in ("none", "ieee") for precision in before):
        return None
    try:
        global_precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # unreadable where only the per-backend flags were set: it has its default then
        global_precision = "highest"
    torch.set_float32_matmul_precision("highest")  # sets the global and the per-backend flags in agreement

    def restore() -> None:
        torch.set_float32_matmul_precision(global_precision)
        for flag, precision in zip(_FLAGS, before, strict=True):
            flag.fp32_precision = precision

    return restore


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` [p, q] of a [p, k] and b [k, q] in the precision of their own type."""
    with exact_float32(a.device):
        return a @ b
