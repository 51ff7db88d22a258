"""Label prediction over the similarity cache: one label set of a batch.

Label prediction reads rows of S and no features, so one d is enough.
"""

from __future__ import annotations

from typing import Any

import snnet_kernels as sk
from snnet_kernels import reference

from .bounds import Work
from .case import MIN_RANK, THRESHOLD, Batch, Case
from .equality import same_labels
from .operation import Operation, Run
from .peers.compiling import compiled, static
from .peers.labels import label_rows, largest_number_of_candidates, predict_labels, predict_labels_static

LOOP_SAMPLES = 16


def gate(case: Case, batch: Batch, labels: Any) -> None:
    expected = reference.mplp(case.memory, batch.index, cache=case.cache)
    same_labels(case, batch, labels, expected)


def work(case: Case) -> Work:
    """The rows of the batch, and of every candidate that was found consistent all that may count against it."""
    return Work(4.0 * case.shape.batch * case.shape.n + case.walked_bytes)


mplp = Operation(
    "mplp", "label prediction over the cache", gate, inputs=("cache",), uses_features=False, work=work
)


@mplp.ours()
def ours(case: Case) -> Run:
    cache, blocks = case.cache, case.blocks
    return lambda batch: sk.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK, cache=cache, blocks=blocks)


@mplp.contender("snnet-whole-rows")
def ours_without_marks(case: Case) -> Run:
    return lambda batch: sk.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK, cache=case.cache)


@mplp.contender("pytorch-cache")
def over_the_cache(case: Case) -> Run:
    def run(batch: Batch) -> Any:
        rows = label_rows(case.memory, batch.index, case.cache)
        return predict_labels(case.memory, batch.index, rows, case.cache)

    return run


@mplp.contender("compile-static")
def compiled_with_static_shapes(case: Case) -> Run:
    static(case.cache)
    width = largest_number_of_candidates(case.cache)

    def run(index: Any) -> Any:
        return predict_labels_static(index, label_rows(case.memory, index, case.cache), case.cache, width)

    run = compiled(run, case.device)
    return lambda batch: run(batch.index)


@mplp.contender("pytorch")
def without_a_cache(case: Case) -> Run:
    def run(batch: Batch) -> Any:
        rows = label_rows(case.memory, batch.index, None)
        return predict_labels(case.memory, batch.index, rows, None)

    return run


@mplp.contender("loop", samples=LOOP_SAMPLES, once=True)
def loop(case: Case) -> Run:
    return lambda batch: reference.loop.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


@mplp.benchmark()
def test_mplp(race, contender, benchmark):
    race.report(contender, benchmark)
