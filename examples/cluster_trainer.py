"""A trainer with a memory of cluster centres, in the style of cluster contrast.

Each epoch groups the images (mutual nearest neighbours, connected), fills a memory with the groups' centres, and
trains against it: a softmax over the similarities to all centres, which a step moves towards its features.
Of the package it uses three functions, and no labels.

    python examples/cluster_trainer.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pedestrians import BATCH, accuracy, arguments, batches, draw, extract, network
from speed import speed_up
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import snnet_kernels as sk
from snnet_kernels.reference import loop

NEIGHBORS, LEAST_SIMILARITY, TEMPERATURE, MOMENTUM = 4, 0.7, 0.1, 0.5


def main() -> None:
    flags = arguments(__doc__)
    data = draw(flags.images, flags.device)
    model = network(flags.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    everyone = torch.arange(len(data.images), device=flags.device)

    print(f"right across cameras: {accuracy(model, data):.1%}")
    for epoch in range(flags.epochs):
        features = extract(model, data.images)
        neighbors, similarity = sk.nearest_neighbors(features, everyone, NEIGHBORS)
        alone = everyone[:, None]
        group = (
            everyone
            if epoch < flags.warm_up
            else connected(torch.where(similarity > LEAST_SIMILARITY, neighbors, alone))
        )
        memory = centres(features, group)
        for batch, index in batches(data.images, epoch):
            features = model(batch)
            loss = cross_entropy(sk.memory_similarity(features, memory) / TEMPERATURE, group[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sk.update_memory_(memory, group[index], features, MOMENTUM)
        print(f"epoch {epoch}: loss {loss.detach():.3f}, {len(memory)} groups")
    print(f"right across cameras: {accuracy(model, data):.1%}")

    features = extract(model, data.images)
    parts = everyone.split(BATCH)[:6]
    speed_up(
        "nearest neighbours",
        lambda index: sk.nearest_neighbors(features, index, NEIGHBORS)[1].sum().item(),
        lambda index: loop.nearest_neighbors(features, index, NEIGHBORS)[1].sum().item(),
        [(index,) for index in parts],
    )
    fused, plain = memory.clone(), memory.clone()
    speed_up(
        "similarity, loss and memory update",
        lambda *values: step(sk.memory_similarity, sk.update_memory_, fused, *values),
        lambda *values: step(lambda f, m: f @ m.t(), loop.update_memory_, plain, *values),
        [(features[index], group[index]) for index in parts],
    )


def connected(neighbors: Tensor) -> Tensor:
    """Group numbers [n] of images joined by mutual nearest neighbours ``neighbors`` [n, k]."""
    n = len(neighbors)
    mutual = (neighbors[neighbors] == torch.arange(n, device=neighbors.device)[:, None, None]).any(2)
    source, place = mutual.nonzero(as_tuple=True)
    target = neighbors[source, place]
    group = torch.arange(n, device=neighbors.device)
    while True:  # the lowest number in reach spreads
        lowest = group.scatter_reduce(0, source, group[target], reduce="amin")
        lowest = lowest[lowest]
        if torch.equal(lowest, group):
            return group.unique(return_inverse=True)[1]
        group = lowest


def centres(features: Tensor, group: Tensor) -> Tensor:
    """Normalised sums [groups, d] of the features [n, d] of each group."""
    sums = features.new_zeros(int(group.max()) + 1, features.shape[1])
    return normalize(sums.index_add(0, group, features), dim=1)


def step(
    similarity: Callable[..., Tensor],
    update_: Callable[..., Any],
    memory: Tensor,
    features: Tensor,
    group: Tensor,
) -> float:
    """The memory's part of a step; images of one group in a batch move its centre one after the other."""
    features = features.clone().requires_grad_()
    loss = cross_entropy(similarity(features, memory) / TEMPERATURE, group)
    loss.backward()
    update_(memory, group, features.detach(), MOMENTUM)
    return loss.item()


if __name__ == "__main__":
    main()
