"""Search of the most similar other images: one over the cache, as an iteration needs it, and ten without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import snnet_kernels as sk
from snnet_kernels import reference

from .bounds import Work, product
from .case import Batch, Case
from .equality import same_neighbors
from .operation import Operation, Run
from .peers.compiling import compiled, static
from .peers.labels import label_rows, nearest_others

K = 10
LOOP_SAMPLES = 16


def gate_one(case: Case, batch: Batch, found: Any) -> None:
    same_neighbors(case, batch, found, 1)


def gate_ten(case: Case, batch: Batch, found: Any) -> None:
    same_neighbors(case, batch, found, K)


def argpartition_others(rows: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row but its own entry, by numpy's partial sort; ``rows`` is written."""
    rows[np.arange(len(index)), index] = -np.inf
    found = np.argpartition(rows, -k, axis=1)[:, -k:]
    similarity = np.take_along_axis(rows, found, axis=1)
    order = np.argsort(-similarity, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(similarity, order, axis=1)


cached = Operation(
    "nearest-cache",
    "nearest other image, over the cache",
    gate_one,
    inputs=("cache",),
    uses_features=False,
    work=lambda case: Work(4.0 * case.shape.batch * case.shape.n),
)


@cached.ours()
def ours_cached(case: Case) -> Run:
    return lambda batch: sk.nearest_neighbors(case.memory, batch.index, cache=case.cache)


@cached.contender("pytorch-cache")
def topk_cached(case: Case) -> Run:
    return lambda batch: nearest_others(batch.index, case.cache[batch.index])


@cached.contender("compile-cache")
def compiled_cached(case: Case) -> Run:
    static(case.cache)

    def largest(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = torch.arange(case.shape.n, device=case.device) == index[:, None]
        similarity, neighbors = case.cache[index].masked_fill(own, -torch.inf).max(1)
        return neighbors, similarity

    run = compiled(largest, case.device)
    return lambda batch: run(batch.index)


@cached.contender("numpy", devices=("cpu",), lingers=True)
def argpartition_cached(case: Case) -> Run:
    cache = case.cache.numpy()
    return lambda batch: argpartition_others(cache[batch.index.numpy()], batch.index.numpy(), 1)


@cached.contender("loop", samples=LOOP_SAMPLES)
def loop_cached(case: Case) -> Run:
    return lambda batch: reference.loop.nearest_neighbors(case.memory, batch.index, cache=case.cache)


@cached.benchmark()
def test_nearest_over_the_cache(race, contender, benchmark):
    race.report(contender, benchmark)


streaming = Operation(
    "nearest-streaming",
    f"{K} nearest other images, without a cache",
    gate_ten,
    work=lambda case: product(case.shape.batch, case.shape.n, case.shape.d),
)


@streaming.ours()
def ours_streaming(case: Case) -> Run:
    return lambda batch: sk.nearest_neighbors(case.memory, batch.index, K)


@streaming.ours_in_precision("tf32x3")
def ours_on_tensor_cores(case: Case) -> Run:
    return ours_streaming(case)


@streaming.contender("pytorch")
def topk_streaming(case: Case) -> Run:
    return lambda batch: nearest_others(batch.index, label_rows(case.memory, batch.index, None), K)


@streaming.contender("compile")
def compiled_streaming(case: Case) -> Run:
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
def argpartition_streaming(case: Case) -> Run:
    memory = case.memory.numpy()
    return lambda batch: argpartition_others(memory[batch.index.numpy()] @ memory.T, batch.index.numpy(), K)


@streaming.contender("loop", samples=LOOP_SAMPLES)
def loop_streaming(case: Case) -> Run:
    return lambda batch: reference.loop.nearest_neighbors(case.memory, batch.index, K)


@streaming.benchmark()
def test_nearest_without_a_cache(race, contender, benchmark):
    race.report(contender, benchmark)
