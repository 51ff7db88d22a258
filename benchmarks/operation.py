"""An operation under measurement: its contenders, and the gate that their answers pass first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import snnet_kernels as sk

from .case import Case, Inputs
from .shapes import Shape, growth_shapes, shapes

Make = Callable[[Any], Any]  # of the inputs what is called, outside the clock
Call = Callable[[Any, Any], Any]  # of that and a batch the answer
Gate = Callable[[Any, Any, Any], None]  # of inputs, batch and answer
GPU = ("cuda",)


def call_itself(made: Any, batch: Any) -> Any:
    """How a function is called that ``make`` gave."""
    return made(batch)


def called(made: Any, batch: Any) -> Any:
    """Call ``made``, and answer ``made`` itself: for gates that call it again on a smaller input."""
    made(batch)
    return made


@dataclass(frozen=True)
class Contender:
    """One way to do an operation: ``call(made, batch)`` is timed, ``made = make(inputs)`` is not."""

    name: str
    make: Make
    call: Call = call_itself
    gate: Gate | None = None  # None: a yardstick that answers another question, for instance a bare product
    once: bool = False  # called once: that call is timed, and its answer goes to the gate
    devices: tuple[str, ...] = ("cpu", "cuda")
    precision: str = "ieee"  # of the products

    def run_of(self, made: Any) -> Callable[[Any], Any]:
        """What is timed: a function of the batch."""

        def run(batch: Any) -> Any:
            with setting(self.precision):
                return self.call(made, batch)

        return run if self.precision != "ieee" else partial(self.call, made)


@dataclass(eq=False)
class Operation:
    """What is measured.

    ``gate(inputs, batch, answer)`` raises AssertionError where an answer is not the reference's.
    """

    name: str
    title: str  # of its table on the page
    gate: Gate
    call: Call = call_itself
    inputs: tuple[str, ...] = ()  # properties of a batch that are made before the clock runs
    needs: tuple[str, ...] = ()  # the same of what a contender makes
    make_case: Callable[[Shape, Any], Inputs] = Case
    shapes: Callable[..., list[Shape]] = shapes  # of device, sizes and dimensions that are asked for
    grows: tuple[str, ...] = ()  # contenders that are measured at the growth shapes, too
    contenders: dict[str, Contender] = field(default_factory=dict)
    beside: Contender | None = None  # a yardstick, which "snnet" takes turns with

    def contender(self, name: str, make: Make | None = None, **options: Any) -> Any:
        """Add a contender; options are the fields of :class:`Contender`. Without ``make``, a decorator of it."""
        if make is None:
            return partial(self.contender, name, **options)
        if name in self.contenders:
            raise ValueError(f"{self.name} has two contenders {name!r}")
        self.contenders[name] = Contender(name, make, **({"call": self.call, "gate": self.gate} | options))
        return make

    def yardstick(self, name: str, make: Make, **options: Any) -> None:
        """Something else that stands beside the contenders: it is called with the batch, and passes no gate."""
        self.contender(name, make, call=call_itself, gate=None, **options)
        self.beside = self.contenders[name]

    def rounded(self, make: Make, **gates: Gate) -> None:
        """This package on a GPU with products of other precisions, and the gate of each."""
        for precision, gate in gates.items():
            self.contender(f"snnet-{precision}", make, devices=GPU, precision=precision, gate=gate)

    def names(self, device: str) -> list[str]:
        return [name for name, contender in self.contenders.items() if device in contender.devices]

    def entries(
        self, device: str, sizes: Collection[str], dims: Collection[int]
    ) -> Iterator[tuple[Shape, str]]:
        """(shape, contender) of all that a run measures. What compiles anew for each n grows only where asked for."""
        names = self.names(device)
        yield from ((shape, name) for shape in self.shapes(device, sizes, dims) for name in names)
        named = bool({*sizes} - {"tiny"})
        growing = [name for name in names if name in self.grows and (named or not name.startswith("compile"))]
        yield from ((shape, name) for shape in growth_shapes(device, sizes) for name in growing)


@contextmanager
def setting(precision: str) -> Iterator[None]:
    """Products of this precision."""
    before = sk.get_matmul_precision()
    sk.set_matmul_precision(precision)
    try:
        yield
    finally:
        sk.set_matmul_precision(before)
