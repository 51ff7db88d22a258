"""Search of the ten most similar other images, without lists; the one from lists is in ``label_prediction.py``."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import Batch, Case
from ..equality import same_neighbors
from ..hardware import product
from ..operation import Operation, Run
from ..peers.compiling import compiled, static
from ..peers.forms import LOOP_SAMPLES
from ..peers.labels import label_rows, nearest_others

K = 10


streaming = Operation(
    "nearest-streaming",
    "Ten nearest other images, without lists",
    partial(same_neighbors, k=K),
    work=lambda case: product(case.shape.batch, case.shape.n, case.shape.d),
)


@streaming.ours("tf32x3")
@streaming.ours()
def ours(case: Case) -> Run:
    return lambda batch: sk.nearest_neighbors(case.memory, batch.index, K)


@streaming.contender("pytorch")
def topk(case: Case) -> Run:
    return lambda batch: nearest_others(batch.index, label_rows(case.memory, batch.index, None), K)


@streaming.contender("compile")
def compiled_topk(case: Case) -> Run:
    static(case.memory)

    def largest(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = case.memory[index] @ case.memory.t()
        own = torch.arange(case.shape.n, device=case.device) == index[:, None]
        similarity, neighbors = rows.masked_fill(own, -torch.inf).topk(K)
        return neighbors, similarity

    run = compiled(largest, case.device)
    return lambda batch: run(batch.index)


@streaming.contender("faiss", requires="faiss", lingers=True, devices=("cpu",))
def by_faiss(case: Case) -> Run:
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
def argpartition(case: Case) -> Run:
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
def loop(case: Case) -> Run:
    return lambda batch: reference.loop.nearest_neighbors(case.memory, batch.index, K)
