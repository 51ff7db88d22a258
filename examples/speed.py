"""Timing two forms of the same work in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def speed_up(
    what: str,
    fused: Callable[..., float],
    unfused: Callable[..., float],
    inputs: Iterable[tuple[Any, ...]],
) -> float:
    """Run both forms on each of ``inputs`` and print how their times compare, and the numbers that they return.

    The first of several inputs is not counted: it pays for what is made once.
    """
    times: dict[str, list[float]] = {"fused": [], "unfused": []}
    results: dict[str, list[float]] = {"fused": [], "unfused": []}
    for values in inputs:
        for name, form in (("fused", fused), ("unfused", unfused)):
            _wait()
            start = time.perf_counter()
            results[name].append(form(*values))
            _wait()
            times[name].append(time.perf_counter() - start)
    fast, slow = (1e3 * statistics.median(times[name][1:] or times[name]) for name in ("fused", "unfused"))
    print(f"{what}: {fast:.2f} ms a step, {slow:.2f} ms un-fused: {slow / fast:.1f} times as fast")
    mean = [statistics.fmean(results[name]) for name in ("fused", "unfused")]
    print(f"  the same results: {mean[0]:.6f} and {mean[1]:.6f}")
    return slow / fast


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
