"""The label work of an iteration by this package: its operations with and without lists, and its head."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

import snnet_kernels as sk

from .case import MIN_RANK, MOMENTUM, NEIGHBORS, THRESHOLD, WEIGHTS, Batch, Case, fill_labels
from .peers.captured import CapturedIteration
from .peers.forms import Form, Neighbors, Update


class Ours(Form):
    """The operations, with neighbour lists beside the memory or with nothing."""

    kept: sk.NeighborLists | None

    def __init__(self, case: Case, *, lists: bool = True) -> None:
        super().__init__(case)
        self.kept = case.own_lists() if lists else None

    @cached_property
    def stored(self) -> sk.PseudoLabelMemory:
        return self.case.own_label_memory()

    def labels(self, index: Tensor) -> tuple[Tensor, Neighbors]:
        labels = sk.mplp(self.memory, index, THRESHOLD, MIN_RANK, lists=self.kept)
        return labels, sk.nearest_neighbors(self.memory, index, lists=self.kept)

    def exchange_(self, index: Tensor, neighbor: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
        others = self.stored.columns(index), self.stored.rows(neighbor)
        self.stored.write_(index, main)
        return others

    def update_(self, index: Tensor, features: Tensor, similarity: Tensor | None) -> None:
        sk.update_memory_(
            self.memory, index, features, self.case.momentum, lists=self.kept, similarity=similarity
        )


class Head(Form):
    """SNNetHead, with lists or without; ``captured`` in a CUDA graph."""

    def __init__(self, case: Case, *, lists: bool = True, captured: bool = False) -> None:
        self.case, self.head = case, head_of(case, lists=lists)
        self.memory, self.stored = self.head.memory.features, self.head.pseudo_labels
        self._replay = CapturedIteration(self.head, case.batches[0]) if captured else None
        case.on_reset(lambda: fill(self.head, case))
        case.reset()  # the warm-up of a capture has written

    @property
    def kept(self) -> sk.NeighborLists | None:
        lists = self.head.memory.lists
        return None if lists is None else lists.tables

    def labels(self, index: Tensor) -> tuple[Tensor, Neighbors]:
        return self.head.memory.predict_labels(index, THRESHOLD, MIN_RANK), self.head.memory.nearest(index)

    def iterate(self, features: Tensor, index: Tensor) -> tuple[Tensor, Update]:
        return self.head(features, index), lambda after: self.head.update_(index, after)

    def iteration(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return super().iteration(batch) if self._replay is None else self._replay(batch)


def head_of(case: Case, *, lists: bool = True) -> sk.SNNetHead:
    """A head with the content of the case."""
    places = NEIGHBORS if lists else 0
    head = sk.SNNetHead(case.shape.n, case.shape.d, weights=WEIGHTS, neighbors=places, device=case.device)
    head.momentum = MOMENTUM
    fill(head, case)
    return head


def fill(head: sk.SNNetHead, case: Case) -> None:
    """Give ``head`` the content of the case, in place, with a copy of the lists where it would build them."""
    head.memory.features.copy_(case.memory)
    fill_labels(head.pseudo_labels, case.label_memory)
    lists = head.memory.lists
    if lists is not None:
        tables = case.lists._asdict()
        products = torch.zeros((), dtype=torch.int64, device=case.device)
        if lists.tables is None:
            tables = {name: table.clone() for name, table in tables.items()}
        lists._take(tables | {"products": products})
        head.memory._notice()
        head.memory._vouch_for_lists()
