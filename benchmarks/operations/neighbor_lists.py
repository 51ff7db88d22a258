"""Building neighbour lists of all images: the half of a product of M with itself, and the largest of each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels.exemplar_memory import FLOOR

from ..case import NEIGHBORS, ROWS_AT_ONCE, Batch, Case
from ..equality import same_lists
from ..operation import Operation

K = NEIGHBORS // 2  # what a memory builds: half of its places stay free


def gate(case: Case, batch: Batch, found: Any) -> None:
    """The rows of the batch hold all that is above their floors, and the values are right."""
    memory, index = case.memory, batch.index
    same_lists(found, index, (memory[index].double() @ memory.double().t()).float())


building = Operation("neighbor-lists", f"Neighbour lists of all images, {K} places", gate)
OPERATIONS = (building,)


@building.contender("snnet", once=True)
def ours(case: Case) -> Any:
    return lambda batch: sk.neighbor_lists(case.memory, K, floor=FLOOR)


def as_lists(values: Tensor, columns: Tensor) -> sk.NeighborLists:
    """Lists of the sorted ``values`` [n, K + 1] above the floor; the last one may be what a row leaves out."""
    floors = values[:, -1].clamp_min(FLOOR)
    counts = (values > floors[:, None]).sum(1)
    return sk.NeighborLists(columns.int(), values, counts.int(), floors)


@building.contender("pytorch", once=True)
def products_and_topk(case: Case) -> Any:
    def run(batch: Batch) -> sk.NeighborLists:
        rows = case.memory.split(ROWS_AT_ONCE)
        parts = [(part @ case.memory.t()).topk(min(K + 1, case.shape.n)) for part in rows]
        return as_lists(*(torch.cat(each) for each in zip(*parts, strict=True)))

    return run


@building.contender("faiss", devices=("cpu",), once=True)
def by_faiss(case: Case) -> Any:
    import faiss

    def run(batch: Batch) -> sk.NeighborLists:
        index = faiss.IndexFlatIP(case.shape.d)
        index.add(case.memory.numpy())
        return as_lists(*map(torch.from_numpy, index.search(case.memory.numpy(), min(K + 1, case.shape.n))))

    return run
