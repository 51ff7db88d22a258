"""The label work of an iteration with s at hand: main label, nearest neighbour, memory and cache update.

``label_step`` stops there; ``label_step_with_p`` also inquires the pseudo label memory P and writes it, so that
it is all of an iteration but the product s and the loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from .bounds import Work
from .case import MIN_RANK, THRESHOLD, Batch, Case
from .equality import as_bool, same, same_labels, same_neighbors, same_update
from .operation import Operation, Run
from .peers.compiling import compiled, static
from .peers.labels import (
    label_rows,
    largest_number_of_candidates,
    nearest_others,
    predict_labels,
    predict_labels_static,
)
from .peers.memory import blend_, blend_with_cache_
from .peers.storage import dense_copy, stored_at

LOOP_SAMPLES = 16


class Step(NamedTuple):
    """What a step found and what it wrote; no cache where the form keeps none."""

    labels: Any
    neighbors: tuple[Tensor, Tensor]
    memory: Tensor
    cache: Tensor | None


def gate(case: Case, batch: Batch, step: Step) -> None:
    same_update(case, batch, step.memory, step.cache)  # puts the case back as it was before the step
    same_labels(case, batch, step.labels, expected_labels(case, batch))
    same_neighbors(case, batch, step.neighbors, 1)


def expected_labels(case: Case, batch: Batch) -> Tensor:
    cache = case.cache if case.cache_fits else None
    return reference.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK, cache=cache)


def work(case: Case) -> Work:
    """Rows of S of the batch, of the candidates that passed what may count; s, rows and columns of S for the update."""
    shape = case.shape
    return Work(16.0 * shape.n * shape.batch + case.walked_bytes + 12.0 * shape.batch * shape.d)


label_step = Operation(
    "label-step",
    "labels, nearest neighbour, memory and cache update",
    gate,
    inputs=("cache_where_it_fits", "similarity"),
    writes=True,
    work=work,
)


def cache_bytes(case: Case) -> int:
    return case.shape.cache_bytes


def marked_cache_bytes(case: Case) -> int:
    return case.shape.cache_bytes + case.shape.n * sk.label_bytes(-(-case.shape.n // 32))


def cache_and_bits(case: Case) -> int:
    return marked_cache_bytes(case) + 2 * case.shape.n * sk.label_bytes(case.shape.n)


@label_step.ours(holds=marked_cache_bytes)
def ours(case: Case) -> Run:
    memory, cache, blocks = case.memory, case.cache, case.blocks

    def run(batch: Batch) -> Step:
        labels = sk.mplp(memory, batch.index, THRESHOLD, MIN_RANK, cache=cache, blocks=blocks)
        neighbors = sk.nearest_neighbors(memory, batch.index, cache=cache)
        update(case, batch)
        return Step(labels, neighbors, memory, cache)

    return run


def update(case: Case, batch: Batch) -> None:
    sk.update_memory_(
        case.memory, batch.index, batch.features, case.momentum,
        cache=case.cache, similarity=batch.similarity, blocks=case.blocks,
    )  # fmt: skip


@label_step.contender("snnet-streaming")
def ours_without_a_cache(case: Case) -> Run:
    memory = case.scratch_memory

    def run(batch: Batch) -> Step:
        labels = sk.mplp(memory, batch.index, THRESHOLD, MIN_RANK)
        neighbors = sk.nearest_neighbors(memory, batch.index)
        sk.update_memory_(memory, batch.index, batch.features, case.momentum)
        return Step(labels, neighbors, memory, None)

    return run


@label_step.contender("pytorch-cache", holds=cache_bytes)
def vectorised_with_cache(case: Case) -> Run:
    memory, cache = case.memory, case.cache

    def run(batch: Batch) -> Step:
        rows = label_rows(memory, batch.index, cache)
        labels = predict_labels(memory, batch.index, rows, cache)
        neighbors = nearest_others(batch.index, rows)
        reference.update_memory_(
            memory, batch.index, batch.features, case.momentum, cache=cache, similarity=batch.similarity
        )
        return Step(labels, neighbors, memory, cache)

    return run


@label_step.contender("compile-cache", holds=cache_bytes)
def compiled_with_cache(case: Case) -> Run:
    return compiled(vectorised_with_cache(case), case.device, dynamic=True)


@label_step.contender("compile-static", holds=cache_bytes)
def compiled_with_static_shapes(case: Case) -> Run:
    memory, cache = case.memory, case.cache
    static(memory, cache)
    width = largest_number_of_candidates(cache)

    def step(index: Tensor, features: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = cache[index]
        labels = predict_labels_static(index, rows, cache, width)
        own = torch.arange(rows.shape[1], device=rows.device) == index[:, None]
        nearest, neighbor = rows.masked_fill(own, -torch.inf).max(1)
        blend_with_cache_(memory, cache, index, features, case.momentum, similarity)
        return labels, neighbor, nearest

    step = compiled(step, case.device)

    def run(batch: Batch) -> Step:
        labels, neighbor, nearest = step(batch.index, batch.features, batch.similarity)
        return Step(labels, (neighbor, nearest), memory, cache)

    return run


@label_step.contender("pytorch")
def vectorised(case: Case) -> Run:
    memory = case.scratch_memory

    def run(batch: Batch) -> Step:
        rows = label_rows(memory, batch.index, None)
        labels = predict_labels(memory, batch.index, rows, None)
        neighbors = nearest_others(batch.index, rows)
        blend_(memory, batch.index, batch.features, case.momentum)
        return Step(labels, neighbors, memory, None)

    return run


@label_step.contender("compile")
def compiled_vectorised(case: Case) -> Run:
    return compiled(vectorised(case), case.device, dynamic=True)


@label_step.contender("loop", samples=LOOP_SAMPLES, once=True)
def loop(case: Case) -> Run:
    memory = case.scratch_memory

    def run(batch: Batch) -> Step:
        labels = reference.loop.mplp(memory, batch.index, THRESHOLD, MIN_RANK)
        neighbors = reference.loop.nearest_neighbors(memory, batch.index)
        reference.loop.update_memory_(memory, batch.index, batch.features, case.momentum)
        return Step(labels, neighbors, memory, None)

    return run


# With the pseudo label memory


class StepWithP(NamedTuple):
    """Three label sets, and what was written: memory, cache and P, in whatever form it is kept."""

    labels: tuple[Any, Any, Any]
    memory: Tensor
    cache: Tensor | None
    stored: Any


def same_written_labels(case: Case, batch: Batch, written: tuple[Tensor, Tensor]) -> Tensor:
    """P[index] bool [B, n] after the step, the main labels; ``written`` is (rows, columns) of P then.

    To be called after the case was put back: outside the batch's rows the columns must be as they were.
    """
    rows, columns = written
    same_labels(case, batch, rows, expected_labels(case, batch))
    expected = sk.unpack_labels(case.label_memory.columns(batch.index), case.shape.n)
    expected[:, batch.index] = rows[:, batch.index].t()
    same("columns of P", columns, expected)
    return rows


def gate_with_p(case: Case, batch: Batch, step: StepWithP) -> None:
    n = case.shape.n
    found = [as_bool(labels, n).clone() for labels in step.labels]
    written = stored_at(step.stored, batch.index, n)
    same_update(case, batch, step.memory, step.cache)
    same("main labels", found[0], same_written_labels(case, batch, written))
    neighbor = reference.nearest_neighbors(case.memory, batch.index, cache=case.cache)[0][:, 0]
    same("symmetric labels", found[1], sk.unpack_labels(case.label_memory.columns(batch.index), n))
    same("neighbour labels", found[2], case.label_rows(neighbor))


label_step_with_p = Operation(
    "label-step-with-p",
    "the three label sets, and the update of P, memory and cache",
    gate_with_p,
    inputs=("cache", "label_memory", "similarity"),
    writes=True,
    work=lambda case: work(case) + Work(5.0 * case.shape.batch * sk.label_bytes(case.shape.n)),
)


@label_step_with_p.ours(holds=cache_and_bits)
def ours_with_p(case: Case) -> Run:
    memory, cache, blocks, stored = case.memory, case.cache, case.blocks, case.label_memory

    def run(batch: Batch) -> StepWithP:
        labels = sk.ops.mine_labels_(
            memory, batch.index, stored.row_bits, stored.column_bits, THRESHOLD, MIN_RANK,
            cache=cache, blocks=blocks,
        )  # fmt: skip
        update(case, batch)
        return StepWithP(labels, memory, cache, stored)

    return run


def _over_dense_p(case: Case, dense: Tensor, batch: Batch, step: Step) -> StepWithP:
    """Inquire and write P as a bool matrix."""
    symmetric = dense[:, batch.index].t()
    neighbor = dense[step.neighbors[0].flatten()]
    dense[batch.index] = as_bool(step.labels, case.shape.n)
    return StepWithP((step.labels, symmetric, neighbor), step.memory, step.cache, dense)


def _with_dense_p(name: str, build: Any) -> None:
    alone = label_step.contenders[name]

    def held(case: Case) -> int:
        return case.shape.n**2 + (alone.holds(case) if alone.holds else 0)

    @label_step_with_p.contender(name, samples=alone.samples, once=alone.once, holds=held)
    def with_dense_p(case: Case) -> Run:
        step, dense = build(case), dense_copy(case, torch.bool)
        return lambda batch: _over_dense_p(case, dense, batch, step(batch))


for _name, _build in {
    "pytorch-cache": vectorised_with_cache,
    "compile-static": compiled_with_static_shapes,
    "pytorch": vectorised,
    "loop": loop,
}.items():
    _with_dense_p(_name, _build)
