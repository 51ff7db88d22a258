"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

# What a step is made of, and the laps that each part sums up.
PARTS = {
    "data": ("data",),
    "backbone": ("forward", "backward"),
    "labels+loss": ("labels",),
    "update": ("update",),
}


class Laps:
    """Seconds spent in each part of a step, summed over the steps.

    On the CPU by the host's clock. On CUDA, where the host runs ahead, by the device's: a part lasts from the
    end of the part before to its own end there, so that waiting for the host's data counts as data.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._ends: list[tuple[str, Any]] = [("", self._now())]

    def end(self, name: str) -> None:
        """What was done since the last call belongs to ``name``."""
        self._ends.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """By name, in the order in which they first ended; waits for the device."""
        if self._on_cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, begin), (name, end) in pairwise(self._ends):
            lap = begin.elapsed_time(end) / 1000 if self._on_cuda else end - begin
            found[name] = found.get(name, 0.0) + lap
        return found

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds_by_part(record: Mapping[str, Any]) -> dict[str, float]:
    """The parts of :data:`PARTS` from the ``seconds_*`` of an epoch's record; those without any are absent."""
    return {
        part: sum(record[f"seconds_{lap}"] for lap in laps)
        for part, laps in PARTS.items()
        if all(f"seconds_{lap}" in record for lap in laps)
    }


def total_by_part(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """:func:`seconds_by_part` summed over the epochs of a run."""
    total: dict[str, float] = {}
    for record in records:
        for part, seconds in seconds_by_part(record).items():
            total[part] = total.get(part, 0.0) + seconds
    return total
