"""A training iteration with a backbone, forward, backward and optimiser step: what the label work adds to it.

On a CPU OSNet x0.25 on 128 × 64 pixels with batches of 64; on a GPU ResNet-50 on 256 × 128 pixels with batches of 128,
in bfloat16 and channels-last. Weights are random and the learning rate is 0, which changes no cost. Features of
such a network are all alike, so that a little of them is mixed into the features of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from snnet.models import ReIDModel, build_model

from .case import Batch, Case
from .equality import close
from .heads import expected_loss, head_of
from .operation import Operation, Run
from .peers.iteration import DenseIteration, LoopIteration
from .shapes import SIZES, Shape

MIXED_IN = 0.05
Answer = tuple[Tensor, Tensor]  # features [B, d] and loss


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
    features, loss = answer
    case.restore_()
    live = Batch(batch.index, features.detach())
    expected = expected_loss(case, live, case.cache)[0]
    if abs(loss - expected) > 1e-5 * abs(expected):  # labels found by products, where rounding decides
        expected = expected_loss(case, live, None)[0]
    close("loss", loss.detach(), expected, absolute=0, relative=1e-5)


training = Operation(
    "training",
    "a training iteration with a backbone",
    gate,
    inputs=("cache", "label_memory"),
    writes=True,
)


def trained(case: Case, head: Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], None]]]) -> Run:
    """One iteration; ``head(features, index)`` gives the loss, and what to call with the features afterwards."""
    network = network_of(case)

    def run(batch: Batch) -> Answer:
        features = network.features(batch)
        loss, update = head(features, batch.index)
        network.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        network.optimizer.step()
        update(features.detach())
        return features, loss

    return run


@training.contender("snnet")
def ours(case: Case) -> Run:
    head = head_of(case, cache=True)
    return trained(case, lambda f, index: (head(f, index), lambda after: head.update_(index, after)))


@training.contender("snnet-streaming")
def ours_without_a_cache(case: Case) -> Run:
    head = head_of(case, cache=False)
    return trained(case, lambda f, index: (head(f, index), lambda after: head.update_(index, after)))


@training.contender("pytorch-cache")
def vectorised_with_cache(case: Case) -> Run:
    return trained(case, DenseIteration(case, cached=True).loss)


@training.contender("pytorch")
def vectorised(case: Case) -> Run:
    return trained(case, DenseIteration(case, cached=False).loss)


@training.contender("loop", once=True)
def loop(case: Case) -> Run:
    return trained(case, LoopIteration(case).loss)


@training.contender("backbone", gated=False)
def backbone_alone(case: Case) -> Run:
    return trained(case, lambda features, index: (features.sum(), lambda after: None))


@training.benchmark(shapes=training_shapes)
def test_training_iteration(race, contender, benchmark):
    race.report(contender, benchmark)
