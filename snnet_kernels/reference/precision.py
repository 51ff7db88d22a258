"""Matrix products in true float32, whatever the program around them asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and every reduced-precision float32 product (TF32, bf16) inside the block.

    A global ``torch.set_float32_matmul_precision`` or ``allow_tf32`` would flip pseudo labels near the
    threshold; the flags of the caller stand again afterwards.
    """
    flags = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [flag.fp32_precision for flag in flags]
    if all(precision in ("none", "ieee") for precision in before):
        with torch.autocast(device.type, enabled=False):
            yield
        return
    try:
        global_precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # unreadable where only the per-backend flags were set: it has its default then
        global_precision = "highest"
    torch.set_float32_matmul_precision("highest")  # sets the global and the per-backend flags in agreement
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(global_precision)
        for flag, precision in zip(flags, before, strict=True):
            flag.fp32_precision = precision


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` [p, q] of a [p, k] and b [k, q] in the precision of their own type."""
    with exact_float32(a.device):
        return a @ b
