"""Label prediction without a cache: the products are made as they are needed."""

from __future__ import annotations

from typing import Any

import torch

import snnet_kernels as sk
from snnet_kernels import reference

from .bounds import Work, product
from .case import MIN_RANK, THRESHOLD, Batch, Case
from .equality import flipped_rows, same_labels
from .operation import Operation, Run
from .peers.compiling import compiled
from .peers.labels import label_rows, predict_labels

LOOP_SAMPLES = 16


def gate(case: Case, batch: Batch, labels: Any) -> None:
    same_labels(case, batch, labels, expected_labels(case, batch))


def expected_labels(case: Case, batch: Batch) -> torch.Tensor:
    parts = [
        reference.mplp(case.memory, index, THRESHOLD, MIN_RANK)
        for index in batch.index.split(128)  # the reference writes [B, n]
    ]
    return torch.cat(parts)


def work(case: Case) -> Work:
    """One pass over M and the products of the batch; the plain form also makes those of each candidate that passed."""
    shape = case.shape
    queries = product(shape.batch, shape.n, shape.d)
    candidates = product(len(case.walked_images), shape.n, shape.d)
    return Work(queries.bytes, queries.operations, queries.products + candidates.products)


streaming = Operation("streaming-mplp", "label prediction without a cache", gate, work=work)


@streaming.ours_in_precision("tf32x3", "bf16")
@streaming.ours()
def ours(case: Case) -> Run:
    return lambda batch: sk.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


@streaming.ours_in_precision("tf32", gate=lambda case, batch, labels: count_flips(case, batch, labels))
def ours_in_tf32(case: Case) -> Run:
    return ours(case)


def count_flips(case: Case, batch: Batch, labels: Any) -> dict[str, int]:
    """Plain tf32 may decide a label the other way; how often is written down."""
    return {"flipped_rows": flipped_rows(case, labels, expected_labels(case, batch))}


@streaming.contender("pytorch")
def vectorised(case: Case) -> Run:
    def run(batch: Batch) -> Any:
        rows = label_rows(case.memory, batch.index, None)
        return predict_labels(case.memory, batch.index, rows, None)

    return run


@streaming.contender("compile")
def compiled_vectorised(case: Case) -> Run:
    return compiled(vectorised(case), case.device, dynamic=True)


@streaming.contender("loop", samples=LOOP_SAMPLES, once=True)
def loop(case: Case) -> Run:
    return lambda batch: reference.loop.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


@streaming.benchmark()
def test_streaming_mplp(race, contender, benchmark):
    race.report(contender, benchmark)
