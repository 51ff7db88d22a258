"""An operation under measurement: its contenders, the gate they pass first, and the least work it needs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import snnet_kernels as sk
from snnet_kernels.backends import table

from .case import Batch, Case, Inputs, Unavailable
from .hardware import Work
from .shapes import Shape, growth_shapes, shapes

Run = Callable[[Batch], Any]
Build = Callable[[Case], Run]
Gate = Callable[[Case, Batch, Any], "dict[str, Any] | None"]


@dataclass(frozen=True)
class Contender:
    """One way to do an operation.

    ``build`` makes, outside the clock, the callable that is timed; ``read`` brings its answer, outside the clock
    too, into the form that the gate compares.
    """

    name: str
    build: Build
    read: Callable[[Any], Any] = lambda answer: answer
    samples: int | None = None  # of the batch, where all of it would take too long; the time is scaled
    once: bool = False  # its calls take so long that the one for the gate is timed, and there is no other
    lingers: bool = False  # brings threads of its own, which go on spinning for a while after a call
    devices: tuple[str, ...] = ("cpu", "cuda")
    requires: str | None = None  # an optional package
    precision: str = "ieee"  # of the products
    keeps: Callable[[Case], int] | None = None  # bytes that it keeps between calls, beside M
    gate: Gate | None = None  # in place of the operation's
    gated: bool = True  # False: a yardstick that answers another question, for instance a bare product

    def check_available(self) -> None:
        """Raise Unavailable where an optional package is not installed."""
        if self.requires and importlib.util.find_spec(self.requires) is None:
            raise Unavailable(f"{self.requires} is not installed (pip install '.[bench]')")


@dataclass(eq=False)
class Operation:
    """What is measured.

    ``gate(case, batch, answer)`` raises where an answer is not the reference's; what it returns, if anything, is
    kept with the result.
    """

    name: str
    title: str  # of its table on the page
    gate: Gate
    inputs: tuple[str, ...] = ()  # properties of a batch that are made before the clock runs
    uses_features: bool = True  # False: d does not enter, one d is enough
    work: Callable[[Case], Work] | None = None
    make_case: Callable[[Shape, Any], Inputs] = Case
    own_shapes: Callable[..., list[Shape]] | None = (
        None  # (device, sizes), in place of those of the command line
    )
    grows: tuple[str, ...] = ()  # contenders that are measured at the growth shapes, too
    contenders: dict[str, Contender] = field(default_factory=dict)

    def contender(self, name: str, **options: Any) -> Callable[[Build], Build]:
        """Decorator of a function ``case -> callable(batch)``; options are the fields of :class:`Contender`."""

        def register(build: Build) -> Build:
            if name in self.contenders:
                raise ValueError(f"{self.name} has two contenders {name!r}")
            self.contenders[name] = Contender(name, build, **options)
            return build

        return register

    def ours(self, *precisions: str, **options: Any) -> Callable[[Build], Build]:
        """:meth:`contender` for this package: ``snnet`` as it is, and on a GPU each of its backends by itself.

        With ``precisions``: only on a GPU, with products of these.
        """

        def register(build: Build) -> Build:
            on_gpu = {**options, "devices": ("cuda",)}
            for precision in precisions:
                self.contender(f"snnet-{precision}", **on_gpu, precision=precision)(
                    lambda case, of=precision: _in_precision(of, build(case))
                )
            if not precisions:
                self.contender("snnet", **options)(build)
                for backend in ("cuda", "triton"):
                    self.contender(f"snnet-{backend}", **on_gpu)(
                        lambda case, by=backend: _forced(by, build(case))
                    )
            return build

        return register

    def names(self, device: str) -> list[str]:
        return [name for name, contender in self.contenders.items() if device in contender.devices]

    def entries(self, device: str, sizes: list[str], dims: list[int]) -> list[tuple[Shape, str]]:
        """(shape, contender) of all that a run measures. What compiles anew for each n grows only where asked for."""
        names = self.names(device)
        asked = self.own_shapes(device, sizes) if self.own_shapes is not None else shapes(device, sizes, dims)
        if not self.uses_features:  # the first d of each size is enough
            asked = list({shape.size: shape for shape in reversed(asked)}.values())
        found = [(shape, name) for shape in asked for name in names]
        named = bool({*sizes} - {"tiny"})
        growing = [name for name in names if name in self.grows and (named or not name.startswith("compile"))]
        return found + [(shape, name) for shape in growth_shapes(device, sizes) for name in growing]


def _forced(backend: str, run: Run) -> Run:
    if os.environ.get("SNNET_BACKEND"):
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
