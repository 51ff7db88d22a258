"""The precision of products on a GPU: float32 as it is, or on the tensor cores."""

from __future__ import annotations

import os

# "ieee": fp32 multiply-adds; "tf32x3", "tf32": tensor cores; "bf16": rounded to bf16 first, summed in fp32.
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


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

    Cells of the similarity cache between two members of one batch are float32 in any precision.

    Args:
        precision: ``"ieee"`` (default), true float32. ``"tf32x3"``, three TF32 products that make up for each
            other's rounding: close to float32, on the tensor cores; the product of a gradient with the memory is
            ``"ieee"`` then. ``"tf32"``, one TF32 product (10 bits of
            mantissa): the fastest, labels near a threshold change (of the rows of a similarity cache made so, 0.10 %
            at d 512 and 0.05 % at d 2048 got another label where operands are rounded to nearest, as the Triton
            kernels do; 2.4 % at d 512 where the library that makes a plain product cuts them off; none with
            ``"tf32x3"``: n 12,936, emulated on a CPU by ``python -m benchmarks.label_flips``). ``"bf16"``, for what
            runs without a similarity cache: labels are found with bfloat16 products, and what lies within
            their error of a decision is checked again in float32, so that the labels are those of ``"ieee"``;
            everything else is as ``"ieee"``.
    """
    global _precision
    _precision = _checked("precision", precision)
