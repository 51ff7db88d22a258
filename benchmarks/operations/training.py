"""A training iteration with a backbone, forward, backward and optimiser step: what the label work adds to it.

On a CPU OSNet x0.25 on 128 × 64 pixels with batches of 64; on a GPU ResNet-50 on 256 × 128 pixels with batches of 128,
in bfloat16 and channels-last. Weights are random and the learning rate is 0, which changes no cost. The features of
such a network are all alike, so a little of them is mixed into the features of the case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from snnet.models import build_model

from ..case import Batch, Case
from ..forms import FORMS, Form
from ..operation import Operation
from ..ours import Head
from ..shapes import SIZES, Shape, fixed
from .iteration import same_iteration

MIXED_IN = 0.05


training_shapes = fixed(
    {
        "cpu": [Shape("training", SIZES["market"], 512, 64)],
        "cuda": [Shape("training", SIZES["market"], 2048, 128)],
    },
    tiny=[Shape("training", SIZES["tiny"], 512, 8)],
)


class Network:
    """A backbone, its optimiser and images for it; ``form`` makes the loss and the update of a batch."""

    def __init__(self, case: Case, make: Callable[[Case], Form] | None) -> None:
        self.form = make and make(case)
        self.made_before_the_clock_runs = self.form and (self.form.stored, self.form.product)
        self.gpu = gpu = case.device.type == "cuda"
        height, width = (256, 128) if gpu else (128, 64)
        torch.manual_seed(0)
        model = build_model("resnet50") if gpu else build_model("osnet_x0_25", embedding="fc")
        layout = {"memory_format": torch.channels_last} if gpu else {}
        self.model = model.to(case.device, **layout)
        self.images = torch.randn(case.shape.batch, 3, height, width, device=case.device).to(**layout)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def iteration(self, batch: Batch) -> tuple[Tensor, Tensor, Form | None]:
        """The features [B, d] with their gradient, the loss, and the form. Without one the loss is a sum."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.gpu):
            output = self.model(self.images[: batch.size])
        features = normalize(batch.features + MIXED_IN * output, dim=1)
        features.retain_grad()
        loss, update = self.form.iterate(features, batch.index) if self.form else (features.sum(), None)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if update:
            update(features.detach())
        return features, loss.detach(), self.form


def gate(case: Case, batch: Batch, answer: tuple[Tensor, Tensor, Form]) -> None:
    features, loss, form = answer
    same_iteration(case, Batch(case, batch.index, features.detach()), (loss, features.grad, form))


training = Operation(
    "training",
    "A training iteration with a backbone",
    gate,
    Network.iteration,
    shapes=training_shapes,
)
OPERATIONS = (training,)
training.contender("snnet", partial(Network, make=Head))
training.contender("snnet-streaming", partial(Network, make=partial(Head, lists=False)))
for _name in ("pytorch-cache", "pytorch", "loop"):
    training.contender(_name, partial(Network, make=FORMS[_name]["make"]), once=_name == "loop")
training.contender("backbone", partial(Network, make=None), gate=None)
