"""The hardware floor of an operation: what it must move and compute at the least, at this machine's measured rates.

No implementation can be faster than the larger of bytes over copy bandwidth and operations over matmul rate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .clock import Call, clock_of


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


class Rates(dict[str, float]):
    """Rates of a device by name, each measured when it is first asked for.

    ``copy``: bytes read and written a second by a copy that no cache holds. ``ieee``, ``tf32`` and ``bf16``: operations
    a second of a large square product in this precision.
    """

    def __init__(self, device: torch.device, *, quick: bool = False) -> None:
        super().__init__()
        self.device, self._clock = device, clock_of(device)
        gpu = device.type == "cuda"
        self._copied = 1 << (24 if quick else 30 if gpu else 28)  # bytes
        self._side = 256 if quick else 8192 if gpu else 2048

    def __missing__(self, name: str) -> float:
        self[name] = self._copy_bandwidth() if name == "copy" else self._product_rate(name)
        return self[name]

    def of_products(self, precision: str) -> float:
        """``tf32x3`` makes three products in tf32."""
        return self["tf32"] / 3 if precision == "tf32x3" else self[precision]

    def floor(self, work: Work, precision: str = "ieee") -> float:
        """Seconds below which no implementation can be."""
        moving = work.bytes / self["copy"]
        return max(moving, work.operations / self.of_products(precision)) if work.operations else moving

    def _copy_bandwidth(self) -> float:
        source = torch.ones(self._copied // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * self._copied / self._least(lambda: target.copy_(source))

    def _product_rate(self, precision: str) -> float:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        left, right = (torch.randn(self._side, self._side, device=self.device).to(dtype) for _ in range(2))
        flags = torch.backends.cuda.matmul
        before, flags.fp32_precision = flags.fp32_precision, "tf32" if precision == "tf32" else "ieee"
        try:
            return 2 * self._side**3 / self._least(lambda: left @ right)
        finally:
            flags.fp32_precision = before

    def _least(self, call: Call) -> float:
        """Seconds at best: a floor is what the machine can do, not what it does when it is disturbed."""
        self._clock.warm(call)
        return min(self._clock.warm(call) for _ in range(7))
