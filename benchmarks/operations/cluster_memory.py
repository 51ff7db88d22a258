"""A step of a cluster memory (loss, gradient, update of the centres), and its update alone, beside the usual loop over
the batch. Either form of the step makes the same two products, which take most of its time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from snnet_kernels import ops
from snnet_kernels.compat.cluster_contrast import ClusterMemory

from ..case import Batch, Inputs
from ..equality import close
from ..operation import Operation
from ..pytorch import LoopedMemory, fastest_product
from ..shapes import DIMS, Shape, fixed

CLUSTERS, BATCH, INSTANCES = 700, 64, 4  # of Market-1501 in training
TEMPERATURE, MOMENTUM = 0.05, 0.1
TOLERANCE = 1e-5  # of the largest entry


def of_clusters(count: int) -> list[Shape]:
    return [Shape("clusters", count, d, BATCH) for d in DIMS]


cluster_shapes = fixed(dict.fromkeys(("cpu", "cuda"), of_clusters(CLUSTERS)), tiny=of_clusters(60))


class Centres(Inputs):
    """Centres of clusters, and features as a network gives them at some distance from theirs."""

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
            self.batches.append(Batch(self, index, 3 * (self.memory[index] + noise)))
        self.rows = {batch: normalize(batch.features, dim=1) for batch in self.batches}


class LoopedHardMemory(LoopedMemory):
    """Here the least similar entry of each centre alone moves it."""

    @staticmethod
    def moving(inputs: Tensor, targets: Tensor, centres: Tensor) -> Any:
        members: dict[int, list[Tensor]] = {}
        for row, target in zip(inputs, targets.tolist(), strict=True):
            members.setdefault(target, []).append(row)
        for target, rows in members.items():
            similarity = [(row @ centres[target]).item() for row in rows]
            yield rows[similarity.index(min(similarity))], target


def same(answer: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        close(name, answer[name].double(), wanted, absolute=0, relative=TOLERANCE)


def stepped(loss_of: Any, centres: Tensor, features: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Loss, gradient, and the centres that ``loss_of(features, index)`` moves when its gradient is asked for."""
    features = features.clone().requires_grad_()
    loss = loss_of(features, index)
    loss.backward()
    return {"loss": loss.detach(), "gradient": features.grad, "centres": centres}


def looped_loss(layer: Any, centres: Tensor, features: Tensor, index: Tensor) -> Tensor:
    logits = layer.apply(normalize(features, dim=1), index, centres, MOMENTUM)
    return cross_entropy(logits / TEMPERATURE, index)


def two_products(case: Centres) -> Any:
    """s = f Cᵀ and s C, as the loss and its gradient need them."""
    features, memory = case.batches[0].features, case.memory
    forward = fastest_product(features, memory)
    backward = fastest_product(forward(features, memory), memory.t())
    return lambda batch: backward(forward(batch.features, memory), memory.t())


def step(name: str, title: str, layer: Any) -> Operation:
    def loop_on(centres: Tensor) -> Any:
        loss_of = partial(looped_loss, layer, centres)
        return lambda batch: stepped(loss_of, centres, batch.features.to(centres.dtype), batch.index)

    def gate(case: Centres, batch: Batch, answer: Any) -> None:
        """Against the loop in float64."""
        same(answer, loop_on(case.memory.double())(batch))

    def ours(case: Centres) -> Any:
        n, d = case.memory.shape
        module = ClusterMemory(d, n, TEMPERATURE, MOMENTUM, layer is LoopedHardMemory)
        module.features = case.own(case.memory)
        return lambda batch: stepped(module, module.features, batch.features, batch.index)

    measured = Operation(name, title, gate, make_case=Centres, shapes=cluster_shapes)
    measured.contender("snnet", ours)
    measured.contender("loop", lambda case: loop_on(case.own(case.memory)))
    measured.yardstick("two-products", two_products)
    return measured


def update_alone(name: str, title: str, layer: Any) -> Operation:
    def gate(case: Centres, batch: Batch, centres: Tensor) -> None:
        """Against the loop in float64."""
        expected = case.memory.double()
        layer.move(normalize(batch.features.double(), dim=1), batch.index, expected, MOMENTUM)
        same({"centres": centres}, {"centres": expected})

    def written_by(write: Any) -> Any:
        def make(case: Centres) -> Any:
            memory = case.own(case.memory)

            def run(batch: Batch) -> Tensor:
                write(memory, batch.index, case.rows[batch])
                return memory

            return run

        return make

    ours = ops.update_memory_by_hardest_ if layer is LoopedHardMemory else ops.update_memory_
    measured = Operation(name, title, gate, make_case=Centres, shapes=cluster_shapes)
    measured.contender("snnet", written_by(partial(ours, momentum=MOMENTUM)))
    measured.contender(
        "loop", written_by(lambda memory, index, rows: layer.move(rows, index, memory, MOMENTUM))
    )
    return measured


HARD = "The same with the hardest image of each cluster"
OPERATIONS = (
    step("cluster-memory", "A step of a cluster memory: loss, gradient, update of the centres", LoopedMemory),
    step("cluster-memory-hard", HARD, LoopedHardMemory),
    update_alone("cluster-update", "The update of a cluster memory alone", LoopedMemory),
    update_alone("cluster-update-hard", HARD, LoopedHardMemory),
)
