"""The product s = f Mᵀ of the live features with the memory: torch's own, on a CPU as a batch of tiles."""

from __future__ import annotations

from typing import Any

import torch

import snnet_kernels as sk

from ..case import Batch, Case
from ..equality import close
from ..hardware import Work, product
from ..operation import Operation, Run
from ..peers.compiling import compiled, static
from ..peers.forms import LOOP_SAMPLES


def gate(case: Case, batch: Batch, similarity: Any) -> None:
    expected = (batch.features.double() @ case.memory.double().t()).float()
    close("similarity", torch.as_tensor(similarity, device=case.device), expected)


def rounded_gate(case: Case, batch: Batch, similarity: Any) -> None:
    close("similarity", similarity, batch.features @ case.memory.t(), absolute=1e-3)


def work(case: Case) -> Work:
    shape = case.shape
    whole = product(shape.batch, shape.n, shape.d)
    return Work(whole.bytes + 4.0 * shape.batch * shape.n, whole.operations, whole.products)


similarity = Operation("similarity", "The product f Mᵀ", gate, work=work)


@similarity.ours("tf32x3", "tf32", gate=rounded_gate)
@similarity.contender("snnet")
def ours(case: Case) -> Run:
    return lambda batch: sk.memory_similarity(batch.features, case.memory)


def plain(case: Case) -> Run:
    return lambda batch: batch.features @ case.memory.t()


def transposed(case: Case) -> Run:
    return lambda batch: (case.memory @ batch.features.t()).t().contiguous()


def into_a_buffer(case: Case) -> Run:
    out = torch.empty(case.shape.batch, case.shape.n, device=case.device)
    return lambda batch: torch.mm(batch.features, case.memory.t(), out=out)


def compiled_product(case: Case) -> Run:
    static(case.memory)
    run = compiled(lambda features: features @ case.memory.t(), case.device)
    return lambda batch: run(batch.features)


def by_numpy(case: Case) -> Run:
    memory = case.memory.numpy()
    return lambda batch: batch.features.numpy() @ memory.T


def loop(case: Case) -> Run:
    return lambda batch: torch.stack([feature @ case.memory.t() for feature in batch.features])


WAYS = {"pytorch": plain, "pytorch-transposed": transposed, "pytorch-out": into_a_buffer}
for _name, _build in (WAYS | {"compile": compiled_product}).items():
    similarity.contender(_name)(_build)
similarity.contender("numpy", devices=("cpu",), lingers=True)(by_numpy)
similarity.contender("loop", samples=LOOP_SAMPLES)(loop)
