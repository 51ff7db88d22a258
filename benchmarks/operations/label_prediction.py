"""Label prediction: with the nearest neighbour from lists, as an iteration needs both, and alone without lists.

From lists (or S) no features are read, so one d is enough; without them products are made as they are needed.
"""

from __future__ import annotations

from typing import Any

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD, Batch, Case
from ..equality import few_flipped_rows, same_labels, same_neighbors
from ..forms import LOOP_SAMPLES, add_forms
from ..hardware import Work, product
from ..operation import Operation
from ..ours import Ours
from ..pytorch import compiled, fastest_product, predict_labels
from ..shapes import one_dim


def same_found(case: Case, batch: Batch, found: tuple[Any, Any]) -> None:
    same_labels(case, batch, found[0])
    same_neighbors(case, batch, found[1], 1)


def streaming_work(case: Case) -> Work:
    """One pass over M and the products of the batch; the plain form also makes those of each candidate that passed."""
    shape = case.shape
    queries = product(shape.batch, shape.n, shape.d)
    candidates = product(len(case.walked_images), shape.n, shape.d)
    return queries._replace(products=queries.products + candidates.products)


from_lists = Operation(
    "labels",
    "Label prediction and nearest neighbour from lists",
    same_found,
    lambda form, batch: form.labels(batch.index),
    needs=("product",),
    shapes=one_dim,
    work=lambda case: Work(case.listed_bytes),
)
streaming = Operation("streaming-mplp", "Label prediction without lists", same_labels, work=streaming_work)
OPERATIONS = (from_lists, streaming)

from_lists.ours(Ours)
add_forms(from_lists, "pytorch-cache", "compile-cache", "compile-static", "pytorch", "loop")


def ours(case: Case) -> Any:
    return lambda batch: sk.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


streaming.ours(ours)
streaming.rounded(ours, tf32x3=same_labels, bf16=same_labels, tf32=few_flipped_rows)


@streaming.contender("pytorch")
def vectorised(case: Case) -> Any:
    product = fastest_product(case.batches[0].features, case.memory)

    def run(batch: Batch) -> Any:
        rows = product(case.memory[batch.index], case.memory)
        return predict_labels(case.memory, batch.index, rows)

    return run


streaming.contender("compile", lambda case: compiled(vectorised(case), case.device, dynamic=True))


@streaming.contender("loop", samples=LOOP_SAMPLES, once=True)
def loop(case: Case) -> Any:
    return lambda batch: reference.loop.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)
