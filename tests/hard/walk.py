"""One random walk through the methods of a module, each step compared with an oracle."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tests.hard.drawing import seed_of
from tests.hard.tally import Tally
from tests.kernels.inputs import unit_rows

STEPS = 25  # of a walk

Random = np.random.Generator


def walk(walker: Walk, tally: Tally, where: str) -> int:
    """One walk, to its end or its first failure; returns the calls."""
    kind = f"walk of {type(walker.module).__name__}"
    path: list[str] = []
    for _ in range(STEPS):
        step = walker.steps[walker.random.integers(len(walker.steps))]
        path.append(step.__name__)
        tally.tried(kind)
        try:
            right = step()
            problem = f"{step.__name__} is wrong"
        except Exception as error:
            right, problem = False, f"{step.__name__}: {type(error).__name__} {error}"
        if not right:
            tally.failed(kind, f"{problem} after {' '.join(path[-3:-1])}", f"{where}: {' '.join(path)}")
            break
    return len(path)


class Walk:
    """A module, its oracle, and the steps: each does something to both and says whether they agree."""

    module: torch.nn.Module

    def __init__(self, random: Random) -> None:
        self.random = random
        self.n, self.d = int(random.integers(1, 41)), int(random.integers(1, 9))

    @property
    def steps(self) -> Sequence[Callable[[], bool]]:
        raise NotImplementedError

    def index(self) -> Tensor:
        return torch.from_numpy(self.random.integers(0, self.n, int(self.random.integers(7))))

    def rows(self, count: int) -> Tensor:
        return unit_rows(count, self.d, seed_of(self.random))

    def neighbors(self) -> int:
        return int((256, self.n, self.random.integers(1, self.n + 1), 1, 0)[self.random.integers(5)])

    # What every module lives through:

    def copied(self) -> bool:
        self.module = copy.deepcopy(self.module)
        return True

    def saved_and_loaded(self) -> bool:
        file = io.BytesIO()
        torch.save(self.module.state_dict(), file)
        file.seek(0)
        self.module.load_state_dict(torch.load(file, weights_only=True))
        return True

    def pickled(self) -> bool:
        file = io.BytesIO()
        torch.save(self.module, file)
        file.seek(0)
        self.module = torch.load(file, weights_only=False)
        return True

    def moved(self) -> bool:
        move = (lambda m: m.to("cpu"), lambda m: m.half(), lambda m: m.double(), lambda m: m.float())
        self.module = move[self.random.integers(len(move))](self.module)
        kept = (torch.float32, torch.uint8, torch.int32, torch.int64)
        return all(b.dtype in kept for b in self.module.buffers())

    def assigned_state(self) -> bool:
        state = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(state, assign=True)
        return True
