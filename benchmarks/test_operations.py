"""The one benchmark: every operation, at every shape, by every contender that were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .operation import Operation
    from .runner import Runner
    from .shapes import Shape


def test_operation(
    runner: Runner, operation: Operation, shape: Shape, contender: str, benchmark: Any
) -> None:
    runner.report(operation, shape, contender, benchmark)
