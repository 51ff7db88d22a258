"""A training iteration with a backbone, forward, backward and optimiser step: what the label work adds to it.

On a CPU OSNet x0.25 on 128 × 64 pixels with batches of 64; on a GPU ResNet-50 on 256 × 128 pixels with batches of 128,
in bfloat16 and channels-last. Weights are random and the learning rate is 0, which changes no cost. Features of
such a network are all alike, so that a little of them is mixed into the features of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from snnet.models import build_model

from ..case import Batch, Case
from ..operation import Operation, Run
from ..ours import Head
from ..peers.forms import FORMS, Form
from ..shapes import SIZES, Shape
from .iteration import Answer, same_iteration

MIXED_IN = 0.05


def training_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    if list(sizes) == ["tiny"]:
        return [Shape("training", SIZES["tiny"], 512, 8)]
    if device == "cuda":
        return [Shape("training", SIZES["market"], 2048, 128)]
    return [Shape("training", SIZES["market"], 512, 64)]


class Network:
    """A backbone, its optimiser and images for it."""

    def __init__(self, case: Case) -> None:
        gpu = case.device.type == "cuda"
        height, width = (256, 128) if gpu else (128, 64)
        torch.manual_seed(0)
        model = build_model("resnet50") if gpu else build_model("osnet_x0_25", embedding="fc")
        layout = {"memory_format": torch.channels_last} if gpu else {}
        self.model = model.to(case.device, **layout)
        self.images = torch.randn(case.shape.batch, 3, height, width, device=case.device).to(**layout)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        self.autocast = gpu

    def features(self, batch: Batch) -> Tensor:
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.model(self.images[: batch.size])
        return normalize(batch.features + MIXED_IN * features, dim=1)

    def iteration(
        self, batch: Batch, iterate: Callable[[Tensor, Tensor], tuple[Tensor, Any]]
    ) -> tuple[Tensor, Tensor]:
        """The features [B, d] with their gradient, and the loss of ``iterate``, which also gives the update."""
        features = self.features(batch)
        features.retain_grad()
        loss, update = iterate(features, batch.index)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        update(features.detach())
        return features, loss.detach()


def gate(case: Case, batch: Batch, answer: tuple[Tensor, Tensor, Form]) -> None:
    features, loss, form = answer
    live = Batch(case, batch.index, features.detach())
    same_iteration(case, live, Answer(loss, features.grad, form.memory, form.kept, form.stored))


training = Operation("training", "A training iteration with a backbone", gate, own_shapes=training_shapes)


def training_with(make: Callable[[Case], Form]) -> Callable[[Case], Run]:
    def build(case: Case) -> Run:
        form, network = make(case), Network(case)
        _ = form.stored  # made before the clock runs
        return lambda batch: (*network.iteration(batch, form.iterate), form)

    return build


training.contender("snnet")(training_with(Head))
training.contender("snnet-streaming")(training_with(lambda case: Head(case, lists=False)))
for _name, _options in {"pytorch-cache": {}, "pytorch": {}, "loop": {"once": True}}.items():
    training.contender(_name, **_options)(training_with(FORMS[_name][0]))


@training.contender("backbone", gated=False)
def backbone_alone(case: Case) -> Run:
    network = Network(case)
    return lambda batch: network.iteration(
        batch, lambda features, index: (features.sum(), lambda after: None)
    )
