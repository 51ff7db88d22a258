"""An operation under measurement: its contenders, the gate they pass first, and the least work it needs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import snnet_kernels as sk
from snnet_kernels.backends import table

from .bounds import Work
from .case import Batch, Case, Unavailable
from .replay import REPLAY
from .shapes import Shape

Run = Callable[[Batch], Any]
Gate = Callable[[Case, Batch, Any], "dict[str, Any] | None"]


@dataclass(frozen=True)
class Contender:
    """One way to do an operation.

    ``build`` makes, outside the clock, the callable that is timed; ``read`` brings its answer, outside the clock
    too, into the form that the gate compares.
    """

    name: str
    build: Callable[[Case], Run]
    read: Callable[[Any], Any] = lambda answer: answer
    samples: int | None = None  # of the batch, where all of it would take too long; the time is scaled
    lingers: bool = False  # brings threads of its own, which go on spinning for a while after a call
    once: bool = False  # its calls take so long that the one for the gate is timed, and there is no other
    devices: tuple[str, ...] = ("cpu", "cuda")
    requires: str | None = None  # an optional package
    precision: str = "ieee"  # of the products
    holds: Callable[[Case], int] | None = None  # bytes that it keeps between calls, beside M
    gate: Gate | None = None  # in place of the operation's
    gated: bool = True  # False: a yardstick that answers another question, for instance a bare product


@dataclass(eq=False)
class Operation:
    """What is measured.

    ``gate(case, batch, answer)`` raises where an answer is not the reference's; what it returns, if anything, is
    kept with the result.
    """

    name: str
    title: str
    gate: Gate
    inputs: tuple[str, ...] = ()  # of the case, see Case.prepare
    writes: bool = False  # contenders write the memory, the cache or the label memory
    uses_features: bool = True  # False: d does not enter, one d is enough
    work: Callable[[Case], Work] | None = None
    make_case: Callable[..., Any] = Case  # (shape, device)
    contenders: dict[str, Contender] = field(default_factory=dict)

    def contender(
        self, name: str, **options: Any
    ) -> Callable[[Callable[[Case], Run]], Callable[[Case], Run]]:
        """Decorator of a function ``case -> callable(batch)``; options are the fields of :class:`Contender`."""

        def register(build: Callable[[Case], Run]) -> Callable[[Case], Run]:
            if name in self.contenders:
                raise ValueError(f"{self.name} has two contenders {name!r}")
            self.contenders[name] = Contender(name, build, **options)
            return build

        return register

    def ours(self, **options: Any) -> Callable[[Callable[[Case], Run]], Callable[[Case], Run]]:
        """:meth:`contender` for this package: ``snnet`` as it is, and on a GPU each of its backends by itself."""

        def register(build: Callable[[Case], Run]) -> Callable[[Case], Run]:
            self.contender("snnet", **options)(build)
            for backend in ("cuda", "triton"):
                only = {**options, "devices": ("cuda",)}
                self.contender(f"snnet-{backend}", **only)(lambda case, by=backend: _forced(by, build(case)))
            return build

        return register

    def ours_in_precision(
        self, *precisions: str, name: str = "snnet", **options: Any
    ) -> Callable[[Callable[[Case], Run]], Callable[[Case], Run]]:
        """Contenders of this package on a GPU with other products than true float32."""

        def register(build: Callable[[Case], Run]) -> Callable[[Case], Run]:
            for precision in precisions:
                only = {**options, "devices": ("cuda",), "precision": precision}
                self.contender(f"{name}-{precision}", **only)(
                    lambda case, of=precision: _in_precision(of, build(case))
                )
            return build

        return register

    def benchmark(
        self, shapes: Callable[..., list[Shape]] | None = None, leave_out: tuple[str, ...] = ()
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Decorator of a test function with the arguments ``race``, ``contender`` and ``benchmark``.

        ``shapes(device, sizes)`` are its own in place of those of the command line. The contenders ``leave_out``
        run only where a size was named: they would make the default run long.
        """

        def mark(test: Callable[..., None]) -> Callable[..., None]:
            test.measured = Measured(self, shapes, leave_out)
            return pytest.mark.benchmark(timer=REPLAY)(test)

        return mark

    def names(self, device: str) -> Iterator[str]:
        return (name for name, contender in self.contenders.items() if device in contender.devices)


@dataclass(frozen=True)
class Measured:
    """What a test function measures: set by :meth:`Operation.benchmark`, read when tests are collected."""

    operation: Operation
    shapes: Callable[..., list[Shape]] | None
    leave_out: tuple[str, ...]


def check_available(contender: Contender) -> None:
    """Raise Unavailable where an optional package is not installed."""
    if contender.requires and importlib.util.find_spec(contender.requires) is None:
        raise Unavailable(f"{contender.requires} is not installed (pip install '.[bench]')")


def _forced(backend: str, run: Run) -> Run:
    if backend not in table.BACKENDS or os.environ.get("SNNET_BACKEND"):
        raise Unavailable("SNNET_BACKEND is set")

    def only(batch: Batch) -> Any:
        before, table.FORCED = table.FORCED, backend
        try:
            return run(batch)
        except NotImplementedError as error:
            raise Unavailable(str(error)) from error
        finally:
            table.FORCED = before

    return only


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = sk.get_matmul_precision()
    sk.set_matmul_precision(precision)
    try:
        yield
    finally:
        sk.set_matmul_precision(before)


def _in_precision(precision: str, run: Run) -> Run:
    def rounded(batch: Batch) -> Any:
        with matmul_precision(precision):
            return run(batch)

    return rounded
