"""Label prediction: with the nearest neighbour from lists, as an iteration needs both, and alone without lists.

From lists (or S) no features are read, so one d is enough; without them products are made as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD, Batch, Case
from ..equality import flipped_rows, same_labels, same_neighbors
from ..hardware import Work, product
from ..operation import Operation, Run
from ..ours import Ours
from ..peers.compiling import compiled
from ..peers.forms import FORMS, LOOP_SAMPLES, Form
from ..peers.labels import label_rows, predict_labels
from .label_step import lists


def same_found(case: Case, batch: Batch, found: tuple[Any, Any]) -> None:
    same_labels(case, batch, found[0])
    same_neighbors(case, batch, found[1], 1)


def streaming_work(case: Case) -> Work:
    """One pass over M and the products of the batch; the plain form also makes those of each candidate that passed."""
    shape = case.shape
    queries = product(shape.batch, shape.n, shape.d)
    candidates = product(len(case.walked_images), shape.n, shape.d)
    return Work(queries.bytes, queries.operations, queries.products + candidates.products)


from_lists = Operation(
    "labels",
    "Label prediction and nearest neighbour from lists",
    same_found,
    uses_features=False,
    work=lambda case: Work(case.listed_bytes),
)
streaming = Operation("streaming-mplp", "Label prediction without lists", same_labels, work=streaming_work)


def finding(make: Callable[[Case], Form]) -> Callable[[Case], Run]:
    def build(case: Case) -> Run:
        form = make(case)
        return lambda batch: form.labels(batch.index)

    return build


from_lists.ours(keeps=lists)(finding(Ours))
for _name in ("pytorch-cache", "compile-static", "pytorch", "loop"):
    from_lists.contender(_name, **FORMS[_name][1])(finding(FORMS[_name][0]))


@streaming.ours("tf32", gate=flipped_rows)
@streaming.ours("tf32x3", "bf16")
@streaming.ours()
def ours(case: Case) -> Run:
    return lambda batch: sk.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


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
