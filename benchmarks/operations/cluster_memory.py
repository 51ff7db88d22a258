"""A step of a cluster memory (loss, gradient, update of the centres) beside the usual loop over the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from snnet_kernels.compat.cluster_contrast import ClusterMemory

from ..case import Inputs
from ..equality import Unequal
from ..operation import Operation
from ..peers.cluster_memory import LoopedHardMemory, LoopedMemory
from ..shapes import DIMS, Shape

CLUSTERS, BATCH, INSTANCES = 700, 64, 4  # of Market-1501 in training
TEMPERATURE, MOMENTUM = 0.05, 0.1
TOLERANCE = 1e-5  # of the largest entry


def cluster_shapes(device: str, sizes: Iterable[str]) -> list[Shape]:
    """One number of clusters, whatever sizes are asked for."""
    clusters = 60 if list(sizes) == ["tiny"] else CLUSTERS
    return [Shape("clusters", clusters, d, BATCH) for d in DIMS]


class Step(NamedTuple):
    """A batch: features as a network gives them, the clusters of its images."""

    features: Tensor  # [B, d]
    index: Tensor  # int64 [B]

    @property
    def size(self) -> int:
        return len(self.index)


class Centres(Inputs):
    """Centres of clusters, and features at some distance from theirs."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        generator = torch.Generator(device=device).manual_seed(0)

        def drawn(rows: int) -> Tensor:
            return torch.randn(rows, shape.d, generator=generator, device=device)

        self.memory = normalize(drawn(shape.n), dim=1)
        self.batches = []
        for _ in range(8):
            chosen = torch.randperm(shape.n, generator=generator, device=device)[: shape.batch // INSTANCES]
            index = chosen.repeat_interleave(INSTANCES)
            noise = 4 * drawn(shape.batch) / shape.d**0.5  # cosines of a quarter
            self.batches.append(Step(3 * (self.memory[index] + noise), index))


Answer = tuple[Tensor, Tensor, Tensor]  # loss, gradient, centres afterwards


def gate_of(layer: type[LoopedMemory]) -> Callable[[Centres, Step, Answer], None]:
    """Against the loop in float64."""

    def gate(case: Centres, batch: Step, answer: Answer) -> None:
        expected = looped(layer, case.memory.double(), batch.features.double(), batch.index)
        for name, got, wanted in zip(("loss", "gradient", "centres"), answer, expected, strict=True):
            error = float((got.double() - wanted).abs().max() / wanted.abs().max())
            if not error <= TOLERANCE:
                raise Unequal(f"{name}: {error:.1e} of the largest off")

    return gate


def looped(layer: type[LoopedMemory], memory: Tensor, features: Tensor, index: Tensor) -> Answer:
    features = features.clone().requires_grad_()
    logits = layer.apply(normalize(features, dim=1), index, memory, MOMENTUM)
    loss = cross_entropy(logits / TEMPERATURE, index)
    loss.backward()
    return loss.detach(), features.grad, memory


mean_memory, hard_memory = (
    Operation(name, title, gate_of(layer), make_case=Centres, own_shapes=cluster_shapes)
    for name, title, layer in (
        ("cluster-memory", "A step of a cluster memory: loss, gradient, update of the centres", LoopedMemory),
        ("cluster-memory-hard", "The same with the hardest image of each cluster", LoopedHardMemory),
    )
)


def ours(use_hard: bool) -> Callable[[Centres], Any]:
    def build(case: Centres) -> Any:
        n, d = case.memory.shape
        module = ClusterMemory(d, n, TEMPERATURE, MOMENTUM, use_hard)
        module.features = case.own(case.memory)

        def run(batch: Step) -> Answer:
            features = batch.features.clone().requires_grad_()
            loss = module(features, batch.index)
            loss.backward()
            return loss.detach(), features.grad, module.features

        return run

    return build


def loop(layer: type[LoopedMemory]) -> Callable[[Centres], Any]:
    def build(case: Centres) -> Any:
        memory = case.own(case.memory)
        return lambda batch: looped(layer, memory, batch.features, batch.index)

    return build


mean_memory.contender("snnet")(ours(use_hard=False))
mean_memory.contender("loop")(loop(LoopedMemory))
hard_memory.contender("snnet")(ours(use_hard=True))
hard_memory.contender("loop")(loop(LoopedHardMemory))
