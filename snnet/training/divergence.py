"""Stops training where a loss or a weight is no longer a finite number."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from snnet.errors import UserError
from snnet.models import ReIDModel
from snnet.system.processes import ALONE, Processes

STEPS_BETWEEN_CHECKS = 50  # on CUDA, where looking at the loss makes the host wait for the device


class LossWatch:
    """Stops training where the loss is not a finite number.

    The first bad step is kept on the device. It is looked at every step on the CPU, but only now and then on
    CUDA, where looking makes the host wait; always before the epoch ends, so that no checkpoint holds it. Of several
    ``processes``, each with a loss of its own, the first bad step is told.
    """

    def __init__(self, epoch: int, steps: int, device: torch.device, processes: Processes = ALONE) -> None:
        self.processes = processes
        self.epoch = epoch
        self.steps = steps
        self.interval = 1 if device.type == "cpu" else STEPS_BETWEEN_CHECKS
        self.bad_step = torch.full((), -1, device=device)

    def check(self, loss: Tensor, step: int) -> None:
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, step, self.bad_step)
        if (step + 1) % self.interval == 0 or step + 1 == self.steps:
            found = [bad for bad in self._found() if bad >= 0]
            if found:
                _stop(f"the loss is not finite at step {min(found)} of epoch {self.epoch}")

    def _found(self) -> list[int]:
        """The first bad step of each process; on a CPU, where each step is checked, its own alone."""
        own = int(self.bad_step)
        return [own] if self.interval == 1 else self.processes.everywhere(own)


def check_weights(model: ReIDModel, epoch: int) -> None:
    """Stop where a weight is not finite: no loss sees an epoch's last update, which must not reach a checkpoint."""
    bad = [~torch.isfinite(value).all() for value in model.state_dict().values()]
    if torch.stack(bad).any():
        _stop(f"weights are not finite after epoch {epoch}")


def _stop(what: str) -> NoReturn:
    raise UserError(
        f"{what}: training stopped; a checkpoint written before is intact (a lower --lr may help)"
    )
