"""A step of a trainer that was written for the MMCL authors' classes, without the backbone: by
:mod:`snnet_kernels.compat`, and by the loop over samples that it has before its imports change.

Their trainer asks for labels of a copy of the memory, which both make.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from snnet_kernels import reference
from snnet_kernels.compat import MMCL, MPLP, Memory
from snnet_kernels.compat.mmcl import EPOCHS

from ..case import DELTA, MIN_RANK, MOMENTUM, RATIO, THRESHOLD, Batch, Case
from ..equality import close_losses, same_labels, same_update
from ..operation import Operation
from ..pytorch import LoopedMemory

EPOCH = 2 * EPOCHS * MOMENTUM  # in which their schedule has this momentum
Answer = tuple[Tensor, Tensor, Tensor, Tensor]  # labels [B, n], loss, gradient, the memory afterwards


def gate(case: Case, batch: Batch, answer: Answer) -> None:
    labels, *losses, memory = answer
    same_labels(case, batch, labels)
    packed = [reference.pack_labels(labels > 0)]
    value, slope = reference.mutual_label_loss_with_grad(
        batch.similarity, packed, [1.0], "mmcl", DELTA, RATIO
    )
    close_losses(losses, (value, reference.memory_similarity_backward(slope, case.memory)))
    same_update(case, batch, memory)


def step(trainer: Any, batch: Batch) -> Answer:
    features = batch.features.clone().requires_grad_()
    labels, loss = trainer.step(features, batch.index)
    loss.backward()
    return labels, loss.detach(), features.grad, trainer.memory


mmcl_trainer = Operation("mmcl-trainer", "A step of a trainer on the MMCL authors' classes", gate, step)
OPERATIONS = (mmcl_trainer,)


@mmcl_trainer.contender("snnet")
class WithCompat:
    def __init__(self, case: Case) -> None:
        self.layer = Memory(case.shape.d, case.shape.n).to(case.device)
        self.layer.mem.data.copy_(case.memory)
        self.memory = self.layer.mem.data
        self.predictor, self.criterion = MPLP(THRESHOLD), MMCL()
        self.predictor.predict(self.memory, case.batches[0].index[:1])  # which builds the lists
        followed = self.layer._followed
        written = (self.memory, followed._sums, *followed.lists.tables)
        for tensor, before in [(tensor, tensor.clone()) for tensor in written]:
            case.on_reset(partial(tensor.copy_, before))

    def step(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.layer(features, index, epoch=EPOCH)
        labels = self.predictor.predict(self.layer.mem.detach().clone(), index.detach().clone())
        return labels, self.criterion(logits, labels, is_vec=True)


@mmcl_trainer.contender("loop", once=True)
class WithALoop:
    """The authors' three classes in plain PyTorch, one sample at a time, with the results of their code."""

    def __init__(self, case: Case) -> None:
        self.memory = case.own(case.memory)

    def step(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = LoopedMemory.apply(features, index, self.memory, MOMENTUM)
        labels = reference.loop.mplp(self.memory.clone(), index, THRESHOLD, MIN_RANK)
        loss = reference.loop.mutual_label_loss(logits, [labels], [1.0])
        return reference.unpack_labels(labels, len(self.memory)).float(), loss
