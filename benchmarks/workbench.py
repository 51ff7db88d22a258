"""What lives as long as the session: the case in use, the races run on it, the rates of the machine."""

from __future__ import annotations

import time

import torch

from .bounds import Rates
from .case import Case, Unavailable
from .operation import Operation
from .race import Effort, Race
from .shapes import Shape


class Workbench:
    """Keeps the inputs of one shape at a time; after ``time_limit`` seconds it begins no race."""

    def __init__(self, device: str, effort: Effort, *, quick: bool, time_limit: float) -> None:
        self.device = torch.device(device)
        self.effort = effort
        self._time_limit = time_limit
        self._started = time.monotonic()
        self.rates = Rates(self.device, quick=quick)
        self._case: Case | None = None
        self._races: dict[Operation, Race] = {}

    def race(self, operation: Operation, shape: Shape, names: list[str]) -> Race:
        """The race of ``operation`` at ``shape``, run when it is first asked for."""
        same_case = self._case is not None and self._case.shape == shape
        if not (same_case and operation in self._races) and self._out_of_time():
            raise Unavailable(f"--time-limit {self._time_limit:g} is over")
        if not same_case:
            self._case, self._races = None, {}  # before the next one: there may be room for one only
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._case = operation.make_case(shape, self.device)
        if operation not in self._races:
            self._races[operation] = Race(operation, self._case, names, self.effort, self.rates)
        return self._races[operation]

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._started > self._time_limit
