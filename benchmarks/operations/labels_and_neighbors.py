"""Labels and neighbours: both from lists, as an iteration needs them, and each alone without lists.

From lists (or S) no features are read, so one d is enough; without them products are made as they are needed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import snnet_kernels as sk
from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD, Batch, Case
from ..equality import few_flipped_rows, same_labels, same_neighbors
from ..forms import add_forms
from ..operation import Operation
from ..ours import Ours
from ..pytorch import compiled, fastest_product, nearest_others, predict_labels
from ..shapes import one_dim

K = 10  # neighbours of the search without lists


def same_found(case: Case, batch: Batch, found: tuple[Any, Any]) -> None:
    same_labels(case, batch, found[0])
    same_neighbors(case, batch, found[1], 1)


from_lists = Operation(
    "labels",
    "Label prediction and nearest neighbour from lists",
    same_found,
    lambda form, batch: form.labels(batch.index),
    needs=("product",),
    shapes=one_dim,
)
streaming = Operation("streaming-mplp", "Label prediction without lists", same_labels)


from_lists.contender("snnet", Ours)
add_forms(from_lists, "pytorch-cache", "compile-cache", "compile-static", "pytorch", "loop")


def ours(case: Case) -> Any:
    return lambda batch: sk.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


streaming.contender("snnet", ours)
streaming.rounded(ours, tf32x3=same_labels, bf16=same_labels, tf32=few_flipped_rows)


@streaming.contender("pytorch")
def vectorised(case: Case) -> Any:
    product = fastest_product(case.batches[0].features, case.memory)

    def run(batch: Batch) -> Any:
        rows = product(case.memory[batch.index], case.memory)
        return predict_labels(case.memory, batch.index, rows)

    return run


streaming.contender("compile", lambda case: compiled(vectorised(case), case.device, dynamic=True))


@streaming.contender("loop", once=True)
def loop(case: Case) -> Any:
    return lambda batch: reference.loop.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK)


ten = partial(same_neighbors, k=K)
nearest = Operation("nearest-streaming", "Ten nearest other images, without lists", ten)


def our_search(case: Case) -> Any:
    return lambda batch: sk.nearest_neighbors(case.memory, batch.index, K)


nearest.contender("snnet", our_search)
nearest.rounded(our_search, tf32x3=ten)


@nearest.contender("pytorch")
def topk(case: Case) -> Any:
    product = fastest_product(case.batches[0].features, case.memory)
    return lambda batch: nearest_others(batch.index, product(case.memory[batch.index], case.memory), K)


@nearest.contender("faiss", devices=("cpu",))
def by_faiss(case: Case) -> Any:
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


OPERATIONS = (from_lists, streaming, nearest)
