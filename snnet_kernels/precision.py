"""The precision of products: true float32, whatever torch's global flags say, or on request tensor cores on a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# "ieee": fp32 multiply-adds; "tf32x3", "tf32": tensor cores; "bf16": rounded to bf16 first, summed in fp32.
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")

_FLAGS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
# The flags are the process's; blocks may run in several threads at once.
_lock = threading.Lock()
_inside = 0  # blocks that are being run
_restore: Callable[[], None] | None = None  # for the last of them to call


def _checked(name: str, value: str) -> str:
    if value not in PRECISIONS:
        raise ValueError(f"{name} must be one of {', '.join(PRECISIONS)}, got {value!r}")
    return value


_precision = _checked("SNNET_MATMUL_PRECISION", os.environ.get("SNNET_MATMUL_PRECISION") or "ieee")


def get_matmul_precision() -> str:
    """The precision of this package's products of CUDA tensors; see :func:`set_matmul_precision`."""
    return _precision


def set_matmul_precision(precision: str) -> None:
    """Set the precision of products with the exemplar memory on CUDA tensors; the CPU always uses float32.

    Labels depend on thresholds and ranks, so torch's global TF32 flag, set for a backbone, would change them. Therefore
    that flag is ignored, and this is a separate setting. The environment variable ``SNNET_MATMUL_PRECISION`` sets it at
    import.

    Products that neighbour lists need are float32 in any precision. With ``"tf32"`` an update of lists does not use the
    ``similarity`` that it is given: it computes it again in float32.

    With products of ``"tf32"``, 0.11 % of the rows of a similarity matrix got another label at d 512, and 0.05 % at d
    2048, if operands are rounded to nearest, as the Triton kernels do. At d 512 it was 2.4 % if operands are truncated,
    as a plain library product may do. With ``"tf32x3"`` there was none (n 12,936, emulated on a CPU by ``python -m
    benchmarks.label_flips``).

    Args:
        precision: ``"ieee"`` (default): true float32. ``"tf32x3"``: three TF32 products that correct each other's
            rounding, close to float32, on tensor cores; the product of a gradient with the memory stays ``"ieee"``.
            ``"tf32"``: one TF32 product (10 bits of mantissa), the fastest, but labels near a threshold change.
            ``"bf16"``: for operations without neighbour lists. Labels are found with bfloat16 products, and decisions
            within their error are checked again in float32, so that labels equal those of ``"ieee"``; everything else
            is as ``"ieee"``.
    """
    global _precision
    _precision = _checked("precision", precision)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and every reduced-precision float32 product (TF32, bf16) inside the block.

    A global ``torch.set_float32_matmul_precision`` or ``allow_tf32`` would flip pseudo labels near the
    threshold; the flags of the caller stand again when the last thread has left its block.
    """
    global _inside, _restore
    with _lock:
        # Inside a block of another thread too: somebody may have set the flags since.
        _restore = _switch_off() or _restore
        _inside += 1
    try:
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _restore is not None:
                _restore()
                _restore = None


def tf32_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of CUDA tensors with operands in TF32, inside an :func:`exact_float32` block."""
    flags = torch.backends.cuda.matmul
    with _lock:  # nobody may take this for what the caller set
        before = flags.fp32_precision
        flags.fp32_precision = "tf32"
        try:
            return a @ b
        finally:
            _set_back(flags, before)


def _forget_other_threads() -> None:
    """In a forked process only the thread that forked goes on."""
    global _lock, _inside, _restore
    _lock, _inside, _restore = threading.Lock(), 0, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


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
            _set_back(flag, precision)

    return restore


def _set_back(flag: Any, precision: str) -> None:
    """Give a flag its precision again; one that only followed a wider flag follows it on."""
    flag.fp32_precision = "none"
    if flag.fp32_precision != precision:
        flag.fp32_precision = precision


def rounds_products(device: torch.device) -> bool:
    """Whether products of the exemplar memory on this device are not float32 or as good."""
    return device.type == "cuda" and _precision == "tf32"


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` [p, q] of a [p, k] and b [k, q] in the precision of their own type."""
    with exact_float32(a.device):
        return a @ b
