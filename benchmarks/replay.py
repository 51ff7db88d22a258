"""Hands times measured elsewhere to pytest-benchmark.

pytest-benchmark times one function after the other. On a machine that others use too, that compares different
moments; and on a GPU the host's clock is the wrong one. So all contenders of an operation are timed in turns, by
the clock of their device, and each test reports its own times through a timer that advances by them.
"""

from __future__ import annotations

from typing import Any


class ReplayTimer:
    """A timer that stands still but for :meth:`play`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: Any, seconds: list[float]) -> None:
        """Report ``seconds``, one a round, as the result of the fixture ``benchmark``."""
        remaining = iter(seconds)

        def advance() -> None:
            self.now = next(remaining)

        def rewind() -> None:
            self.now = 0.0

        benchmark.pedantic(advance, setup=rewind, rounds=len(seconds))


REPLAY = ReplayTimer()
