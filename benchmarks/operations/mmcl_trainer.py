"""A step of a trainer that was written for the MMCL authors' classes, without the backbone: by
:mod:`snnet_kernels.compat`, and by the loop over samples that it has before its imports change.

Their trainer asks for labels of a copy of the memory, which both make.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from snnet_kernels import reference
from snnet_kernels.compat import MMCL, MPLP, Memory
from snnet_kernels.compat.mmcl import EPOCHS

from ..case import MOMENTUM, THRESHOLD, Batch, Case
from ..equality import close, same_labels
from ..operation import Operation
from ..peers.forms import LOOP_SAMPLES
from ..peers.mmcl_trainer import LoopedTrainer

EPOCH = 2 * EPOCHS * MOMENTUM  # in which their schedule has this momentum


class Answer(NamedTuple):
    """Of a step: the labels [B, n], the loss, its gradient [B, d], and the batch's rows of the memory afterwards."""

    labels: Tensor
    loss: Tensor
    gradient: Tensor
    rows: Tensor


def gate(case: Case, batch: Batch, answer: Answer) -> None:
    same_labels(case, batch, answer.labels)
    packed = [reference.pack_labels(answer.labels > 0)]
    loss, slope = reference.mutual_label_loss_with_grad(batch.similarity, packed, [1.0], "mmcl", 5.0, 0.01)
    close("loss", answer.loss, loss, absolute=0, relative=1e-5)
    gradient = reference.memory_similarity_backward(slope, case.memory)
    close("gradient", answer.gradient, gradient, absolute=0, relative=1e-5)
    updated = case.memory.clone()
    reference.update_memory_(updated, batch.index, batch.features, case.momentum)
    close("memory", answer.rows, updated[batch.index])


mmcl_trainer = Operation("mmcl-trainer", "A step of a trainer on the MMCL authors' classes", gate)

# What is written is not put back: lists would not be of it. The gate sees the first step.


@mmcl_trainer.contender("snnet")
def with_compat(case: Case) -> Callable[[Batch], Answer]:
    memory = Memory(case.shape.d, case.shape.n).to(case.device)
    memory.mem.data.copy_(case.memory)
    predictor, criterion = MPLP(THRESHOLD), MMCL()

    def run(batch: Batch) -> Answer:
        features = batch.features.clone().requires_grad_()
        logits = memory(features, batch.index, epoch=EPOCH)
        labels = predictor.predict(memory.mem.detach().clone(), batch.index.detach().clone())
        loss = criterion(logits, labels, is_vec=True)
        loss.backward()
        return Answer(labels, loss.detach(), gradient_of(features), memory.mem.data[batch.index])

    return run


@mmcl_trainer.contender("loop", samples=LOOP_SAMPLES, once=True)
def with_a_loop(case: Case) -> Callable[[Batch], Answer]:
    trainer = LoopedTrainer(case.memory.clone(), MOMENTUM)

    def run(batch: Batch) -> Answer:
        features = batch.features.clone().requires_grad_()
        labels, loss = trainer.step(features, batch.index)
        return Answer(labels, loss, gradient_of(features), trainer.memory[batch.index])

    return run


def gradient_of(features: Tensor) -> Any:
    return features.grad
