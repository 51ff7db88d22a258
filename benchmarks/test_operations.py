"""The one benchmark: every operation, at every shape, by every contender that were asked for."""

from __future__ import annotations

from typing import Any


def test_operation(runner: Any, operation: Any, shape: Any, contender: str, benchmark: Any) -> None:
    runner.report(operation, shape, contender, benchmark)
