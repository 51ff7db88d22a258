"""A trainer in the style of the MMCL authors: memory, label prediction and loss are three classes.

What makes it fast is where it imports them from: before, it was ``from unfused import MMCL, MPLP, Memory``.

    python examples/mmcl_trainer.py
"""

from __future__ import annotations

import types
from collections.abc import Callable
from itertools import islice

import torch
import unfused
from pedestrians import accuracy, arguments, batches, draw, network
from speed import speed_up
from torch import Tensor

from snnet_kernels import compat
from snnet_kernels.compat import MMCL, MPLP, Memory

THRESHOLD, DELTA, HARD = 0.8, 5.0, 0.05
EPOCHS_OF_MEMORY = 60  # for which the memory's schedule is made


def main() -> None:
    flags = arguments(__doc__)
    data = draw(flags.images, flags.device)
    model = network(flags.device)
    memory = Memory(model.feature_dim, len(data.images)).to(flags.device)
    predictor, criterion = MPLP(THRESHOLD), MMCL(DELTA, HARD)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

    print(f"right across cameras: {accuracy(model, data):.1%}")
    for epoch in range(flags.epochs):
        for batch, index in batches(data.images, epoch):
            features = model(batch)
            logits = memory(features, index, epoch=epoch * EPOCHS_OF_MEMORY / flags.epochs)
            if epoch < flags.warm_up:
                loss = criterion(logits, index)
            else:
                labels = predictor.predict(memory.mem.detach().clone(), index.detach().clone())
                loss = criterion(logits, labels, True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.detach():.3f}")
    print(f"right across cameras: {accuracy(model, data):.1%}")

    steps = [(model(batch).detach(), index) for batch, index in islice(batches(data.images, 0), 6)]
    forms = [step_of(classes, memory.mem) for classes in (compat, unfused)]
    speed_up("labels, loss and memory update", *forms, steps)


def step_of(classes: types.ModuleType, trained: Tensor) -> Callable[[Tensor, Tensor], float]:
    """What the three classes do in a step, those of ``compat`` or ``unfused``, on a copy of a trained memory."""
    memory = classes.Memory(trained.shape[1], trained.shape[0]).to(trained.device)
    memory.mem.data.copy_(trained)
    predictor, criterion = classes.MPLP(THRESHOLD), classes.MMCL(DELTA, HARD)

    def step(features: Tensor, index: Tensor) -> float:
        features = features.clone().requires_grad_()
        labels = predictor.predict(memory.mem.detach().clone(), index)
        loss = criterion(memory(features, index, epoch=30), labels, True)
        loss.backward()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
