"""A whole iteration without the backbone: product, labels, label memory, loss, gradient, memory and cache update.

The yardstick on a CPU is the bare product of features and memory, written in the fastest of three ways.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk

from .bounds import Work, product
from .case import Batch, Case
from .clock import clock_of
from .equality import close, same_update
from .heads import expected_loss, fill, head_of
from .label_step import cache_and_bits, cache_bytes, same_written_labels
from .label_step import work as work_of_the_labels
from .operation import Operation, Run, matmul_precision
from .peers.captured import CapturedIteration
from .peers.iteration import DenseIteration, LoopIteration, StaticIteration
from .peers.storage import stored_at

LOOP_SAMPLES = 16


# Loss, gradient, and as they were written M, S and P.
Answer = tuple[Tensor, Tensor, Tensor, "Tensor | None", Any]


def gate(case: Case, batch: Batch, answer: Answer) -> None:
    """Loss, gradient, memory, cache and label memory are those of the reference, step by step."""
    loss, gradient, memory, cache, stored = answer
    loss, gradient = loss.clone(), gradient.clone()  # a CUDA graph's are buffers
    written = stored_at(stored, batch.index, case.shape.n)
    same_update(case, batch, memory, cache)
    same_written_labels(case, batch, written)
    expected = expected_loss(case, batch, case.cache)
    if abs(loss - expected[0]) > 1e-5 * abs(
        expected[0]
    ):  # rounding may decide a label: made by products, too?
        expected = expected_loss(case, batch, None)
    close("loss", loss, expected[0], absolute=0, relative=1e-5)
    close("gradient", gradient, expected[1], absolute=0, relative=1e-5)


def loose_gate(case: Case, batch: Batch, answer: Answer) -> None:
    """For products in tf32: the loss within their rounding; memory and cache are not compared."""
    close("loss", answer[0], expected_loss(case, batch, case.cache)[0], absolute=0, relative=1e-2)


def work(case: Case) -> Work:
    return product(case.shape.batch, case.shape.n, case.shape.d) + work_of_the_labels(case)


iteration = Operation(
    "iteration",
    "a whole iteration without the backbone",
    gate,
    inputs=("cache", "label_memory"),
    writes=True,
    work=work,
)


def answered(head: sk.SNNetHead, loss: Tensor, gradient: Tensor) -> Answer:
    return loss, gradient, head.memory.features, head.memory.cache, head.pseudo_labels


def eager(case: Case, *, cache: bool) -> Run:
    head = head_of(case, cache=cache)

    def run(batch: Batch) -> Answer:
        features = batch.features.detach().clone().requires_grad_()
        loss = head(features, batch.index)
        loss.backward()
        head.update_(batch.index, features.detach())
        return answered(head, loss.detach(), features.grad)

    return run


def captured(case: Case) -> Run:
    head = head_of(case, cache=True)
    replay = CapturedIteration(head, case.batches[0])
    fill(head, case)  # the warm-up has written
    return lambda batch: answered(head, *replay(batch))


iteration.ours(holds=cache_and_bits)(lambda case: eager(case, cache=True))
iteration.contender("snnet-streaming")(lambda case: eager(case, cache=False))
iteration.contender("snnet-graph", devices=("cuda",), holds=cache_and_bits)(captured)


def captured_in(precision: str) -> Callable[[Case], Run]:
    """Captured with other products: what a graph does is decided when it is captured."""

    def build(case: Case) -> Run:
        with matmul_precision(precision):
            return captured(case)

    return build


for _precision, _gate in (("tf32x3", gate), ("tf32", loose_gate)):
    iteration.contender(
        f"snnet-graph-{_precision}", devices=("cuda",), precision=_precision, gate=_gate, holds=cache_and_bits
    )(captured_in(_precision))


def cache_and_bools(case: Case) -> int:
    return cache_bytes(case) + case.shape.n**2


@iteration.contender("pytorch-cache", holds=cache_and_bools)
def vectorised_with_cache(case: Case) -> Run:
    step = DenseIteration(case, cached=True)
    return lambda batch: (*step(batch), step.memory, step.cache, step.labels)


@iteration.contender("compile-static", holds=cache_and_bools)
def compiled_with_static_shapes(case: Case) -> Run:
    step = StaticIteration(case)
    return lambda batch: (*step(batch), step.memory, step.cache, step.labels)


@iteration.contender("pytorch")
def vectorised(case: Case) -> Run:
    step = DenseIteration(case, cached=False)
    return lambda batch: (*step(batch), step.memory, None, step.labels)


@iteration.contender("loop", samples=LOOP_SAMPLES, once=True)
def loop(case: Case) -> Run:
    step = LoopIteration(case)
    return lambda batch: (*step(batch), step.memory, None, step.labels)


@iteration.contender("bare-product", gated=False)
def fastest_product(case: Case) -> Run:
    """The fastest of three ways to write f Mᵀ."""
    memory, clock = case.memory, clock_of(case.device)
    out = torch.empty(case.shape.batch, case.shape.n, device=case.device)
    ways: list[Run] = [
        lambda batch: batch.features @ memory.t(),
        lambda batch: (memory @ batch.features.t()).t().contiguous(),
        lambda batch: torch.mm(batch.features, memory.t(), out=out),
    ]

    def seconds(way: Run) -> float:
        return statistics.median(clock.cold(lambda: way(case.batches[0])) for _ in range(5))

    return min(ways, key=seconds)


@iteration.benchmark()
def test_iteration(race, contender, benchmark):
    race.report(contender, benchmark)
