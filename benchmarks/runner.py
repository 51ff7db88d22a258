"""One contender at one shape: its answer is compared, then pytest-benchmark times it, then another one is compared.

The memory of that last call is measured; where one call is timed, it is all three.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

from snnet_kernels.backends import table

from .case import Inputs, Unavailable
from .clock import clock_of
from .operation import Contender, Operation
from .peak_memory import Watch
from .shapes import Shape

WARM_BELOW = 0.05  # seconds: a longer call moves far more than a processor's cache holds
LEAST_ROUNDS = 3
ONCE_ABOVE = 5.0  # seconds: a longer call is timed once
Run = Callable[[Any], Any]  # of a batch


@dataclass
class Runner:
    """Measures at most ``rounds`` calls of a contender, about ``seconds`` of them; keeps the inputs of one shape."""

    device: torch.device
    rounds: int = 20
    seconds: float = 0.6
    memory: bool = True
    case: Inputs | None = None

    def __post_init__(self) -> None:
        self.clock = clock_of(self.device)

    def report(self, operation: Operation, shape: Shape, name: str, benchmark: Any) -> None:
        """Measure and describe; skip what is not available here or finds no memory. A wrong answer raises."""
        try:
            self.measure(operation, operation.contenders[name], self._case_of(operation, shape), benchmark)
        except Unavailable as reason:
            pytest.skip(str(reason))
        except ModuleNotFoundError as error:
            if str(error.name).startswith(("benchmarks", "snnet")):  # nothing that one installs
                raise
            pytest.skip(f"{error.name} is not installed (pip install '.[bench]')")
        except (MemoryError, RuntimeError) as error:
            text = str(error)
            if isinstance(error, NotImplementedError) and text.startswith("SNNET_BACKEND="):
                pytest.skip(text)  # the forced backend does not serve this
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in text:
                raise  # torch has no class for what a CPU refuses
            pytest.skip(f"out of memory: {text.splitlines()[0] if text else type(error).__name__}")

    def _case_of(self, operation: Operation, shape: Shape) -> Any:
        kept = self.case
        if kept is None or kept.shape != shape or type(kept) is not operation.make_case:
            self.case = kept = None  # before the next one: there may be room for one only
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.case = operation.make_case(shape, self.device)
        return self.case

    def measure(self, operation: Operation, contender: Contender, case: Any, benchmark: Any) -> None:
        """Fills ``benchmark.extra_info`` last, after all gates have passed: ``slim`` drops a result without it."""
        batches = case.batches
        with mock.patch.object(table, "FORCED", None):  # a forced backend is for the contender alone
            for batch in batches:
                for name in operation.inputs:
                    getattr(batch, name)
        benchmark.group = f"{operation.name}, {case.shape.name}"

        def compare(batch: Any, answer: Any) -> None:
            if contender.gate:
                contender.gate(case, batch, answer)

        watch = Watch(self.device, memory=self.memory)
        try:
            made = contender.make(case)
            for name in operation.needs:
                getattr(made, name, None)
            run, first = contender.run_of(made), batches[0]
            if contender.once:
                answer, found = self._time_once(watch, run, case, first, benchmark)
                compare(first, answer)
            else:
                compare(first, run(first))
                beside = operation.beside if contender.name == "snnet" else None
                found = self._time(beside, run, case, batches, benchmark)
                # Of another batch: who is right only once, or has kept the first answer, is wrong now.
                second = batches[1 % len(batches)]
                case.reset()
                watch.start()
                answer = run(second)
                found |= watch.found()
                compare(second, answer)
            shape = case.shape
            found |= {"operation": operation.name, "contender": contender.name, "shape": shape.name}
            found |= {"n": shape.n, "d": shape.d}
            kept = sum(part.nbytes for part in made.buffers()) if hasattr(made, "buffers") else 0
            if kept:
                found["held_bytes"] = kept
        finally:
            case.forget()
        benchmark.extra_info.update(found)

    def _cold(self, case: Any, batch: Any) -> tuple[tuple[Any], dict[str, Any]]:
        """What pytest-benchmark does before a call; it takes the arguments of the call from here."""
        case.reset()
        self.clock.sweep()
        return (batch,), {}

    def _time_once(
        self, watch: Watch, run: Run, case: Any, batch: Any, benchmark: Any
    ) -> tuple[Any, dict[str, Any]]:
        """One cold call by pytest-benchmark: its answer, and what ``watch`` has found.

        On a GPU a call before it loads the kernels.
        """
        if self.device.type == "cuda":
            run(batch)
        found: dict[str, Any] = {}

        def prepare() -> Any:
            prepared = self._cold(case, batch)
            watch.start(timed=True)
            return prepared

        def after(batch: Any) -> None:
            found.update(watch.found())

        return benchmark.pedantic(run, setup=prepare, teardown=after), found

    def _time(
        self, beside: Contender | None, run: Run, case: Any, batches: Any, benchmark: Any
    ) -> dict[str, Any]:
        """Cold calls by pytest-benchmark, each on the next batch, and after each the same call again at once.

        A yardstick ``beside`` the contender is called after each, too: a moment in which the machine is slow then
        changes both.
        """
        times: dict[str, list[float]] = {"warm_seconds": [], "yardstick_seconds": []}
        clock = self.clock
        measure = beside.run_of(beside.make(case)) if beside else None
        # The first calls are no measure: compiled code may be compiled again for the second batch it meets.
        for batch in (batches[1 % len(batches)], batches[2 % len(batches)]):
            case.reset()
            seconds = clock.cold(lambda batch=batch: run(batch))
        wanted = max(LEAST_ROUNDS, round(self.seconds / max(seconds, 1e-9)))
        rounds = 1 if seconds > ONCE_ABOVE else min(self.rounds, wanted)
        turns = iter(range(rounds))

        def prepare() -> Any:
            return self._cold(case, batches[next(turns) % len(batches)])

        def again(batch: Any) -> None:
            if seconds < WARM_BELOW:
                times["warm_seconds"].append(clock.warm(lambda: run(batch)))
            if measure:
                times["yardstick_seconds"].append(clock.cold(lambda: measure(batch)))

        benchmark.pedantic(run, setup=prepare, teardown=again, rounds=rounds)
        return {name: statistics.median(values) for name, values in times.items() if values}
