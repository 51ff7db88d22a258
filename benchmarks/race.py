"""The contenders of one operation at one shape: gate, then clock, then peak memory.

Contenders run in turns, so that a slow moment of the machine meets them all, each round on the next batch.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from .bounds import Rates
from .case import Batch, Case, Unavailable
from .clock import clock_of
from .operation import Contender, Operation, Run, check_available
from .peak_memory import peak_bytes
from .replay import REPLAY

WARM_BELOW = 0.05  # seconds: a longer call moves far more than a processor's cache holds
LEAST_ROUNDS = 3
LINGERING = 0.1  # seconds: the threads of OpenBLAS spin for about a third of it
MOST_COPIED = (
    2_000_000_000  # bytes of a cache: writing its columns in a forked process copies all of its pages
)
ONCE_ABOVE = 5.0  # seconds: a longer call is timed once


@dataclass(frozen=True)
class Effort:
    """How long is measured: at most ``rounds`` a contender, about ``seconds`` of it."""

    rounds: int = 20
    seconds: float = 0.6
    memory: bool = True


@dataclass
class Lane:
    """One contender in the race and what came of it."""

    contender: Contender
    run: Run | None = None
    obstacle: Exception | None = None  # why there is no time: unavailable, or not equal
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Race:
    """All ``names`` of ``operation`` on ``case``; everything happens in the constructor."""

    def __init__(
        self, operation: Operation, case: Case, names: list[str], effort: Effort, rates: Rates
    ) -> None:
        self.operation, self.case, self.effort, self.rates = operation, case, effort, rates
        self.clock = clock_of(case.device)
        self.lanes = {name: Lane(operation.contenders[name]) for name in names}
        try:
            case.prepare(*operation.inputs)
        except (Unavailable, torch.OutOfMemoryError) as obstacle:
            for lane in self.lanes.values():
                lane.obstacle = _as_reason(obstacle)
            return
        if operation.writes:
            case.save()
        torch._dynamo.reset()  # what was compiled for another shape does not count
        for lane in self.lanes.values():
            self._qualify(lane)
        try:
            self._take_turns([lane for lane in self.lanes.values() if lane.obstacle is None])
            for lane in self.lanes.values():
                if lane.obstacle is None:
                    self._describe(lane)
        finally:
            for lane in self.lanes.values():
                lane.run = None  # and what it holds
            if operation.writes:
                case.restore_()

    def report(self, name: str, benchmark: Any) -> None:
        """Hand the times of contender ``name`` to pytest-benchmark; skip or fail where there are none."""
        lane = self.lanes[name]
        if isinstance(lane.obstacle, Unavailable):
            pytest.skip(str(lane.obstacle))
        if lane.obstacle is not None:
            raise lane.obstacle
        benchmark.group = f"{self.operation.name}, {self.case.shape.name}"
        benchmark.extra_info.update(lane.extra)
        REPLAY.play(benchmark, lane.cold)

    def _qualify(self, lane: Lane) -> None:
        """Build the contender, run it once, and let it pass the gate."""
        contender, case = lane.contender, self.case
        batch = self._part(lane, case.batches[0])
        try:
            check_available(contender)
            lane.run = contender.build(case)
            if contender.once:
                answer, seconds = self._timed(lambda: lane.run(batch))
                lane.cold.append(self._scale(lane) * seconds)
            else:
                answer = lane.run(batch)
            if contender.gated:
                gate = contender.gate or self.operation.gate
                lane.extra |= gate(case, batch, contender.read(answer)) or {}
        except Exception as obstacle:
            lane.obstacle = _as_reason(obstacle)
        finally:
            if self.operation.writes:
                case.restore_()

    def _part(self, lane: Lane, batch: Batch) -> Batch:
        samples = lane.contender.samples
        return batch if samples is None else batch.first(samples)

    def _scale(self, lane: Lane) -> float:
        batch = self.case.batches[0]
        return batch.size / self._part(lane, batch).size

    def _take_turns(self, lanes: list[Lane]) -> None:
        rounds: dict[int, int] = {}
        for lane in lanes:
            if lane.contender.once:
                continue
            # The first calls are no measure: compiled code may be compiled again for the second batch it meets.
            seconds = self._guarded(lane, lambda lane=lane: self._host_seconds(lane, 1))
            if seconds is not None:
                seconds = self._guarded(lane, lambda lane=lane: self._host_seconds(lane, 2))
            if seconds is not None and seconds > ONCE_ABOVE:
                lane.cold.append(self._scale(lane) * seconds)
                continue
            wanted = round(self.effort.seconds / max(seconds or 0, 1e-9))
            rounds[id(lane)] = min(self.effort.rounds, max(LEAST_ROUNDS, wanted))
        for turn in range(max(rounds.values(), default=0)):
            for lane in lanes:
                if lane.obstacle is None and turn < rounds.get(id(lane), 0):
                    batch = self._part(lane, self.case.batches[turn % len(self.case.batches)])
                    self._guarded(lane, lambda lane=lane, batch=batch: self._time(lane, batch))
                    if self.operation.writes:
                        self.case.restore_(batch.index)
                    if lane.contender.lingers:
                        time.sleep(LINGERING)

    def _guarded(self, lane: Lane, action: Callable[[], float | None]) -> float | None:
        """``action()``; where it fails the lane is out, the others go on."""
        try:
            return action()
        except Exception as obstacle:
            lane.obstacle = _as_reason(obstacle)
            return None

    def _host_seconds(self, lane: Lane, which: int) -> float:
        batch = self._part(lane, self.case.batches[which % len(self.case.batches)])
        return self.clock.host(lambda: lane.run(batch))

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """What ``call`` returns, and its seconds."""
        answers: list[Any] = []
        seconds = self.clock.host(lambda: answers.append(call()))
        return answers[0], seconds

    def _time(self, lane: Lane, batch: Batch) -> None:
        scale, run = self._scale(lane), lane.run
        lane.cold.append(scale * self.clock.cold(lambda: run(batch)))
        if lane.cold[-1] < WARM_BELOW:
            lane.warm.append(scale * self.clock.warm(lambda: run(batch)))
        if self.case.device.type == "cuda":
            lane.host.append(scale * self.clock.host(lambda: run(batch)))

    def _describe(self, lane: Lane) -> None:
        shape, device = self.case.shape, self.case.device
        lane.extra |= {
            "operation": self.operation.name,
            "contender": lane.contender.name,
            "shape": shape.name,
            "n": shape.n,
            "d": shape.d,
            "batch": shape.batch,
            "device": device.type,
            "precision": lane.contender.precision,
            "scaled": self._scale(lane),
        }
        if lane.warm:
            lane.extra["warm_seconds"] = statistics.median(lane.warm)
        if lane.host:
            lane.extra["host_seconds"] = statistics.median(lane.host)
        if self.operation.work is not None:
            work = self.operation.work(self.case)
            lane.extra["floor_seconds"] = self.rates.floor(work, lane.contender.precision)
            if work.products:
                rate = self.rates.matmul_rate(lane.contender.precision)
                lane.extra["product_seconds"] = work.products / rate
        if lane.contender.holds is not None:
            lane.extra["held_bytes"] = lane.contender.holds(self.case)
        writes_cache = self.operation.writes and lane.contender.holds is not None
        copies = device.type == "cpu" and writes_cache and shape.cache_bytes > MOST_COPIED
        if self.effort.memory and self._scale(lane) == 1 and not lane.contender.once and not copies:
            batch = self.case.batches[0]
            with contextlib.suppress(torch.OutOfMemoryError):
                lane.extra["peak_bytes"] = peak_bytes(lambda: lane.run(batch), device)


def _as_reason(obstacle: Exception) -> Exception:
    """Where memory is short nothing is wrong: the benchmark is skipped, and says so."""
    if isinstance(obstacle, torch.OutOfMemoryError):
        return Unavailable(f"out of memory: {str(obstacle).splitlines()[0]}")
    return obstacle
