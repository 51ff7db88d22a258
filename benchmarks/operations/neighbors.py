"""Search of the ten most similar other images, without lists; the one from lists is in ``label_prediction.py``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import Batch, Case
from ..equality import same_neighbors
from ..forms import LOOP_SAMPLES
from ..hardware import product
from ..operation import Operation
from ..pytorch import compiled, fastest_product, nearest_others, static

K = 10
gate = partial(same_neighbors, k=K)
streaming = Operation(
    "nearest-streaming",
    "Ten nearest other images, without lists",
    gate,
    work=lambda case: product(case.shape.batch, case.shape.n, case.shape.d),
)
OPERATIONS = (streaming,)


def ours(case: Case) -> Any:
    return lambda batch: sk.nearest_neighbors(case.memory, batch.index, K)


streaming.ours(ours)
streaming.rounded(ours, tf32x3=gate)


@streaming.contender("pytorch")
def topk(case: Case) -> Any:
    product = fastest_product(case.batches[0].features, case.memory)
    return lambda batch: nearest_others(batch.index, product(case.memory[batch.index], case.memory), K)


@streaming.contender("compile")
def compiled_topk(case: Case) -> Any:
    static(case.memory)
    product = fastest_product(case.batches[0].features, case.memory)

    def largest(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = product(case.memory[index], case.memory)
        own = torch.arange(case.shape.n, device=case.device) == index[:, None]
        similarity, neighbors = rows.masked_fill(own, -torch.inf).topk(K)
        return neighbors, similarity

    run = compiled(largest, case.device)
    return lambda batch: run(batch.index)


@streaming.contender("faiss", lingers=True, devices=("cpu",))
def by_faiss(case: Case) -> Any:
    """An index of the memory as it is; each memory update would have to remove and add its rows, which is not timed."""
    import faiss

    flat = faiss.IndexFlatIP(case.shape.d)
    flat.add(case.memory.numpy())

    def run(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        index = batch.index.numpy()
        similarity, found = flat.search(case.memory[batch.index].numpy(), K + 1)
        others = found != index[:, None]
        others[others.all(1), -1] = False  # a duplicate pushed the image itself out
        return found[others].reshape(-1, K), similarity[others].reshape(-1, K)

    return run


@streaming.contender("numpy", devices=("cpu",), lingers=True)
def argpartition(case: Case) -> Any:
    """The largest of each row but its own entry, by numpy's partial sort."""
    memory = case.memory.numpy()

    def run(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        index = batch.index.numpy()
        rows = memory[index] @ memory.T
        rows[np.arange(len(index)), index] = -np.inf
        found = np.argpartition(rows, -K, axis=1)[:, -K:]
        similarity = np.take_along_axis(rows, found, axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(similarity, order, axis=1)

    return run


@streaming.contender("loop", samples=LOOP_SAMPLES)
def loop(case: Case) -> Any:
    return lambda batch: reference.loop.nearest_neighbors(case.memory, batch.index, K)
