"""A trainer in the style of the MMCL authors: memory, label prediction and loss are three classes.

What makes it fast is its import of them: ``from unfused import MMCL, MPLP, Memory`` is what it was.

    python examples/mmcl_trainer.py
"""

from __future__ import annotations

import copy
import types
from itertools import islice

import torch
import unfused
from pedestrians import arguments, batches, draw, neighbor_accuracy, network
from speed import speed_up
from torch import Tensor

from snnet_kernels import compat
from snnet_kernels.compat import MMCL, MPLP, Memory

WARM_UP = 1  # epochs in which each image is its own class


def main() -> None:
    flags = arguments(__doc__)
    images, identities = draw(flags.images, flags.device)
    model = network(flags.device)
    memory = Memory(model.feature_dim, len(images)).to(flags.device)
    predictor, criterion = MPLP(t=0.6), MMCL(delta=5.0, r=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    print(f"nearest neighbour right: {neighbor_accuracy(model, images, identities):.1%}")
    for epoch in range(flags.epochs):
        total = 0.0
        for batch, index in batches(images, epoch):
            features = model(batch)
            logits = memory(features, index, epoch=epoch)
            if epoch < WARM_UP:
                loss = criterion(logits, index)
            else:
                labels = predictor.predict(memory.mem.detach().clone(), index.detach().clone())
                loss = criterion(logits, labels, True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / (len(images) // len(index)):.3f}")
    print(f"nearest neighbour right: {neighbor_accuracy(model, images, identities):.1%}")

    steps = [(model(batch).detach(), index) for batch, index in islice(batches(images, 0), 6)]
    forms = [step_of(classes, memory) for classes in (compat, unfused)]
    speed_up("labels, loss and memory update", *forms, steps)


def step_of(classes: types.ModuleType, trained: Memory):
    """The three classes' part of a step, from ``compat`` or ``unfused``, on a copy of the trained memory."""
    memory = classes.Memory(trained.mem.shape[1], trained.mem.shape[0])
    memory.mem = copy.deepcopy(trained.mem)
    predictor, criterion = classes.MPLP(0.6), classes.MMCL(5.0, 0.01)

    def step(features: Tensor, index: Tensor) -> float:
        features = features.clone().requires_grad_()
        labels = predictor.predict(memory.mem.detach().clone(), index)
        loss = criterion(memory(features, index, epoch=30), labels, True)
        loss.backward()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
