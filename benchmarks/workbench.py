"""What lives as long as the session: the case in use, the races run on it, the rates of the machine."""

from __future__ import annotations

import torch

from .bounds import Rates
from .case import Case
from .operation import Operation
from .race import Effort, Race
from .shapes import Shape


class Workbench:
    """Keeps the inputs of one shape at a time."""

    def __init__(self, device: str, rounds: int, seconds: float, *, memory: bool, quick: bool) -> None:
        self.device = torch.device(device)
        self.effort = Effort(rounds, seconds, memory)
        self.rates = Rates(self.device, quick=quick)
        self._case: Case | None = None
        self._races: dict[Operation, Race] = {}

    def race(self, operation: Operation, shape: Shape, names: list[str]) -> Race:
        """The race of ``operation`` at ``shape``, run when it is first asked for."""
        if self._case is None or self._case.shape != shape:
            self._case, self._races = None, {}  # before the next one: there may be room for one only
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._case = operation.make_case(shape, self.device)
        if operation not in self._races:
            self._races[operation] = Race(operation, self._case, names, self.effort, self.rates)
        return self._races[operation]
