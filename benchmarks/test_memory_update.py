"""Momentum update of the exemplar memory, alone and with the similarity cache brought up to date."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from .bounds import Work
from .case import Batch, Case
from .equality import same_update
from .operation import Operation, Run
from .peers.compiling import compiled, static
from .peers.memory import blend_, blend_with_cache_, refresh_rows_

LOOP_SAMPLES = 16


def blending(case: Case) -> Work:
    """Rows of M read and written, features read."""
    return Work(4.0 * 3 * case.shape.batch * case.shape.d)


def recurrence(case: Case) -> Work:
    """Besides: rows of S and of s read, rows and columns of S written."""
    return blending(case) + Work(4.0 * 4 * case.shape.batch * case.shape.n)


# The memory alone


def gate_memory(case: Case, batch: Batch, memory: Tensor) -> None:
    same_update(case, batch, memory)


alone = Operation("memory-update", "memory update", gate_memory, writes=True, work=blending)


@alone.ours()
def ours(case: Case) -> Run:
    def run(batch: Batch) -> Tensor:
        sk.update_memory_(case.memory, batch.index, batch.features, case.momentum)
        return case.memory

    return run


@alone.contender("pytorch")
def vectorised(case: Case) -> Run:
    def run(batch: Batch) -> Tensor:
        blend_(case.memory, batch.index, batch.features, case.momentum)
        return case.memory

    return run


@alone.contender("compile")
def compiled_vectorised(case: Case) -> Run:
    static(case.memory)
    update = compiled(
        lambda index, features: blend_(case.memory, index, features, case.momentum), case.device
    )

    def run(batch: Batch) -> Tensor:
        update(batch.index, batch.features)
        return case.memory

    return run


@alone.contender("loop", samples=LOOP_SAMPLES)
def loop(case: Case) -> Run:
    def run(batch: Batch) -> Tensor:
        reference.loop.update_memory_(case.memory, batch.index, batch.features, case.momentum)
        return case.memory

    return run


@alone.benchmark()
def test_memory_update(race, contender, benchmark):
    race.report(contender, benchmark)


# Memory and cache, s at hand


def gate_cache(case: Case, batch: Batch, written: tuple[Tensor, Tensor]) -> None:
    same_update(case, batch, *written)


with_cache = Operation(
    "cache-update",
    "memory and cache update",
    gate_cache,
    inputs=("cache", "similarity"),
    writes=True,
    work=recurrence,
)


@with_cache.ours()
def ours_with_cache(case: Case) -> Run:
    blocks = case.blocks

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        sk.update_memory_(
            case.memory,
            batch.index,
            batch.features,
            case.momentum,
            cache=case.cache,
            similarity=batch.similarity,
            blocks=blocks,
        )
        return case.memory, case.cache

    return run


@with_cache.contender("pytorch-cache")
def vectorised_with_cache(case: Case) -> Run:
    """The reference: it also finds repeated images, and rows in which the recurrence would lose accuracy."""

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        reference.update_memory_(
            case.memory,
            batch.index,
            batch.features,
            case.momentum,
            cache=case.cache,
            similarity=batch.similarity,
        )
        return case.memory, case.cache

    return run


@with_cache.contender("compile-static")
def compiled_recurrence(case: Case) -> Run:
    static(case.memory, case.cache)

    def recur(index: Tensor, features: Tensor, similarity: Tensor) -> None:
        blend_with_cache_(case.memory, case.cache, index, features, case.momentum, similarity)

    update = compiled(recur, case.device)

    def run(batch: Batch) -> Any:
        update(batch.index, batch.features, batch.similarity)
        return case.memory, case.cache

    return run


@with_cache.contender("pytorch-fresh-rows")
def product_with_the_memory(case: Case) -> Run:
    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        blend_(case.memory, batch.index, batch.features, case.momentum)
        refresh_rows_(case.cache, case.memory, batch.index)
        return case.memory, case.cache

    return run


@with_cache.benchmark()
def test_memory_and_cache_update(race, contender, benchmark):
    race.report(contender, benchmark)
