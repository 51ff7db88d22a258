"""The product s = f Mᵀ of the live features with the memory: torch's own, on a CPU as a batch of tiles."""

from __future__ import annotations

from typing import Any

import torch

import snnet_kernels as sk

from .bounds import Work, product
from .case import Batch, Case
from .equality import close
from .operation import Operation, Run
from .peers.compiling import compiled, static

LOOP_SAMPLES = 16


def gate(case: Case, batch: Batch, similarity: Any) -> None:
    expected = (batch.features.double() @ case.memory.double().t()).float()
    close("similarity", torch.as_tensor(similarity, device=case.device), expected)


def work(case: Case) -> Work:
    shape = case.shape
    return product(shape.batch, shape.n, shape.d) + Work(4.0 * shape.batch * shape.n)


similarity = Operation("similarity", "the product of features and memory", gate, work=work)


@similarity.contender("snnet")
def ours(case: Case) -> Run:
    return lambda batch: sk.memory_similarity(batch.features, case.memory)


@similarity.ours_in_precision(
    "tf32x3",
    "tf32",
    gate=lambda case, batch, s: close("s", s, batch.features @ case.memory.t(), absolute=1e-3),
)
def ours_rounded(case: Case) -> Run:
    return ours(case)


@similarity.contender("pytorch")
def plain(case: Case) -> Run:
    return lambda batch: batch.features @ case.memory.t()


@similarity.contender("pytorch-transposed")
def transposed(case: Case) -> Run:
    return lambda batch: (case.memory @ batch.features.t()).t().contiguous()


@similarity.contender("pytorch-out")
def into_a_buffer(case: Case) -> Run:
    out = torch.empty(case.shape.batch, case.shape.n, device=case.device)
    return lambda batch: torch.mm(batch.features, case.memory.t(), out=out)


@similarity.contender("compile")
def compiled_product(case: Case) -> Run:
    static(case.memory)
    run = compiled(lambda features: features @ case.memory.t(), case.device)
    return lambda batch: run(batch.features)


@similarity.contender("numpy", devices=("cpu",), lingers=True)
def by_numpy(case: Case) -> Run:
    memory = case.memory.numpy()
    return lambda batch: batch.features.numpy() @ memory.T


@similarity.contender("loop", samples=LOOP_SAMPLES)
def loop(case: Case) -> Run:
    return lambda batch: torch.stack([feature @ case.memory.t() for feature in batch.features])


@similarity.benchmark()
def test_similarity(race, contender, benchmark):
    race.report(contender, benchmark)
