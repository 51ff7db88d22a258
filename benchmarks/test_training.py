"""A training iteration with a backbone, forward, backward and optimiser step: what the label work adds to it.

On a CPU OSNet x0.25 on 128 × 64 pixels with batches of 64; on a GPU ResNet-50 on 256 × 128 pixels with batches of 128,
in bfloat16 and channels-last. Weights are random and the learning rate is 0, which changes no cost. Features of
such a network are all alike, so that a little of them is mixed into the features of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from snnet.models import ReIDModel, build_model
from snnet_kernels import SNNetHead

from .case import Batch, Case
from .equality import close, same_update
from .heads import expected_loss, head_of
from .label_step import same_written_labels
from .operation import Operation, Run
from .peers.iteration import DenseIteration, LoopIteration
from .peers.storage import stored_at
from .shapes import SIZES, Shape

MIXED_IN = 0.05


class Answer(NamedTuple):
    features: Tensor  # [B, d], with its gradient
    loss: Tensor
    memory: Tensor
    cache: Tensor | None
    stored: Any  # P


def training_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    if list(sizes) == ["tiny"]:
        return [Shape("training", SIZES["tiny"], 512, 8)]
    if device == "cuda":
        return [Shape("training", SIZES["market"], 2048, 128)]
    return [Shape("training", SIZES["market"], 512, 64)]


@dataclass(frozen=True)
class Network:
    """A backbone, its optimiser and images for it."""

    model: ReIDModel
    optimizer: torch.optim.Optimizer
    images: Tensor
    autocast: bool

    def features(self, batch: Batch) -> Tensor:
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.model(self.images[: batch.size])
        return normalize(batch.features + MIXED_IN * features, dim=1)


def network_of(case: Case) -> Network:
    gpu = case.device.type == "cuda"
    height, width = (256, 128) if gpu else (128, 64)
    torch.manual_seed(0)
    model = build_model("resnet50") if gpu else build_model("osnet_x0_25", embedding="fc")
    model = model.to(case.device)
    images = torch.randn(case.shape.batch, 3, height, width, device=case.device)
    if gpu:
        model, images = (value.to(memory_format=torch.channels_last) for value in (model, images))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return Network(model, optimizer, images, autocast=gpu)


def gate(case: Case, batch: Batch, answer: Answer) -> None:
    live = Batch(batch.index, answer.features.detach())
    written = stored_at(answer.stored, live.index, case.shape.n)
    same_update(case, live, answer.memory, answer.cache)
    same_written_labels(case, live, written)
    loss, gradient = expected_loss(case, live, case.cache)
    if abs(answer.loss - loss) > 1e-5 * abs(loss):  # labels found by products, where rounding decides
        loss, gradient = expected_loss(case, live, None)
    close("loss", answer.loss.detach(), loss, absolute=0, relative=1e-5)
    close("gradient", answer.features.grad, gradient, absolute=0, relative=1e-5)


training = Operation(
    "training",
    "a training iteration with a backbone",
    gate,
    inputs=("cache", "label_memory"),
    writes=True,
)


Head = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], None]]]


def trained(case: Case, head: Head, written: tuple[Any, ...] = (None, None, None)) -> Run:
    """One iteration; ``head(features, index)`` gives the loss, and what to call with the features afterwards.

    ``written`` are memory, cache and label memory of the head.
    """
    network = network_of(case)

    def run(batch: Batch) -> Answer:
        features = network.features(batch)
        features.retain_grad()
        loss, update = head(features, batch.index)
        network.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        network.optimizer.step()
        update(features.detach())
        return Answer(features, loss, *written)

    return run


def with_head(case: Case, head: SNNetHead) -> Run:
    def step(features: Tensor, index: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        return head(features, index), lambda after: head.update_(index, after)

    return trained(case, step, (head.memory.features, head.memory.cache, head.pseudo_labels))


def with_peer(case: Case, peer: DenseIteration | LoopIteration) -> Run:
    return trained(case, peer.loss, (peer.memory, getattr(peer, "cache", None), peer.labels))


@training.contender("snnet")
def ours(case: Case) -> Run:
    return with_head(case, head_of(case, cache=True))


@training.contender("snnet-streaming")
def ours_without_a_cache(case: Case) -> Run:
    return with_head(case, head_of(case, cache=False))


@training.contender("pytorch-cache")
def vectorised_with_cache(case: Case) -> Run:
    return with_peer(case, DenseIteration(case, cached=True))


@training.contender("pytorch")
def vectorised(case: Case) -> Run:
    return with_peer(case, DenseIteration(case, cached=False))


@training.contender("loop", once=True)
def loop(case: Case) -> Run:
    return with_peer(case, LoopIteration(case))


@training.contender("backbone", gated=False)
def backbone_alone(case: Case) -> Run:
    return trained(case, lambda features, index: (features.sum(), lambda after: None))


@training.benchmark(shapes=training_shapes)
def test_training_iteration(race, contender, benchmark):
    race.report(contender, benchmark)
