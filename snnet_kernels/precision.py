"""The precision of products: true float32 whatever the program around asks for, or, on a GPU, the tensor cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """The precision of this package's products on CUDA tensors; see :func:`set_matmul_precision`."""
    return _precision


def set_matmul_precision(precision: str) -> None:
    """Choose how products with the exemplar memory are made on CUDA tensors; the CPU always uses float32.

    It is a setting of its own because labels are decided by thresholds and ranks: torch's global TF32 flag, set for a
    backbone, would change them, and is ignored here. The environment variable ``SNNET_MATMUL_PRECISION`` sets it
    at import.

    What neighbour lists multiply themselves is float32 in any precision; a listed pair follows the ``similarity``
    that an update is given, with its rounding.

    Args:
        precision: ``"ieee"`` (default), true float32. ``"tf32x3"``, three TF32 products that make up for each
            other's rounding: close to float32, on the tensor cores; the product of a gradient with the memory is
            ``"ieee"`` then. ``"tf32"``, one TF32 product (10 bits of
            mantissa): the fastest, labels near a threshold change (of the rows of a similarity matrix made so, 0.10 %
            at d 512 and 0.05 % at d 2048 got another label where operands are rounded to nearest, as the Triton
            kernels do; 2.4 % at d 512 where the library that makes a plain product cuts them off; none with
            ``"tf32x3"``: n 12,936, emulated on a CPU by ``python -m benchmarks.label_flips``). ``"bf16"``, for what
            runs without neighbour lists: labels are found with bfloat16 products, and what lies within
            their error of a decision is checked again in float32, so that the labels are those of ``"ieee"``;
            everything else is as ``"ieee"``.
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
        with torch.autocast(device.type, enabled=False):
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
            flags.fp32_precision = before


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
            flag.fp32_precision = precision

    return restore


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` [p, q] of a [p, k] and b [k, q] in the precision of their own type."""
    with exact_float32(a.device):
        return a @ b
