"""The hardware floor of an operation: what it must move and compute at the least, at this machine's measured rates.

No implementation can be faster than the larger of bytes over copy bandwidth and operations over matmul rate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .clock import Call, clock_of

# tf32x3 makes three products in tf32.
_PRODUCTS = {"ieee": ("ieee", 1), "tf32": ("tf32", 1), "tf32x3": ("tf32", 3), "bf16": ("bf16", 1)}


class Work(NamedTuple):
    """``bytes`` to move from and to memory, and ``operations`` (a multiply-add is two) of matrix products.

    ``products`` are the operations of the plain form, where skipping some of them is part of the method.
    """

    bytes: float
    operations: float = 0.0
    products: float = 0.0


def product(rows: float, n: float, d: float) -> Work:
    """``rows`` features [d] times a memory [n, d]: the memory read once, no result written."""
    operations = 2.0 * rows * n * d
    return Work(4.0 * n * d, operations, operations)


class Rates:
    """Copy bandwidth and matmul rates of a device, each measured when it is first asked for."""

    def __init__(self, device: torch.device, *, quick: bool = False) -> None:
        self.device = device
        self._clock = clock_of(device)
        gpu = device.type == "cuda"
        self._copied = 1 << (24 if quick else 30 if gpu else 28)  # bytes
        self._side = 256 if quick else 8192 if gpu else 2048
        self._found: dict[str, float] = {}

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a copy that no cache holds."""
        if "copy" not in self._found:
            source = torch.ones(self._copied // 4, device=self.device)
            target = torch.empty_like(source)
            self._found["copy"] = 2 * self._copied / self._least(lambda: target.copy_(source))
        return self._found["copy"]

    def matmul_rate(self, precision: str = "ieee") -> float:
        """Operations per second of a large square product in ``precision``."""
        precision, products = _PRODUCTS[precision]
        if precision not in self._found:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            left, right = (
                torch.randn(self._side, self._side, device=self.device).to(dtype) for _ in range(2)
            )
            flags = torch.backends.cuda.matmul
            before, flags.fp32_precision = flags.fp32_precision, "tf32" if precision == "tf32" else "ieee"
            try:
                seconds = self._least(lambda: left @ right)
            finally:
                flags.fp32_precision = before
            self._found[precision] = 2 * self._side**3 / seconds
        return self._found[precision] / products

    def floor(self, work: Work, precision: str = "ieee") -> float:
        """Seconds below which no implementation can be."""
        seconds = work.bytes / self.copy_bandwidth()
        if work.operations:
            seconds = max(seconds, work.operations / self.matmul_rate(precision))
        return seconds

    def found(self) -> dict[str, float]:
        """What was measured so far, by name."""
        return dict(self._found)

    def _least(self, call: Call) -> float:
        """Seconds at best: a floor is what the machine can do, not what it does when it is disturbed."""
        self._clock.warm(call)
        return min(self._clock.warm(call) for _ in range(7))
