"""The label work of an iteration by this package: its operations with and without lists, and its head."""

from __future__ import annotations

import torch
from torch import Tensor

import snnet_kernels as sk

from .case import MIN_RANK, MOMENTUM, NEIGHBORS, THRESHOLD, WEIGHTS, Batch, Case, fill_labels
from .forms import Form, Neighbors, Update
from .operation import setting


class Ours(Form):
    """The operations, with neighbour lists beside the memory or with nothing."""

    keep_labels = staticmethod(Case.own_label_memory)

    def __init__(self, case: Case, *, lists: bool = True) -> None:
        super().__init__(case)
        self.kept = sk.NeighborLists(*map(case.own, case.lists)) if lists else None

    def labels(self, index: Tensor) -> tuple[Tensor, Neighbors]:
        labels = sk.mplp(self.memory, index, THRESHOLD, MIN_RANK, lists=self.kept)
        return labels, sk.nearest_neighbors(self.memory, index, lists=self.kept)

    def update_(self, index: Tensor, features: Tensor, similarity: Tensor | None) -> None:
        sk.update_memory_(
            self.memory, index, features, self.case.momentum, lists=self.kept, similarity=similarity
        )


class Head(Form):
    """SNNetHead, with lists or without; ``captured`` in a CUDA graph, with products of this precision."""

    def __init__(self, case: Case, *, lists: bool = True, captured: str = "") -> None:
        n, d = case.memory.shape
        self.case = case
        self.head = head = sk.SNNetHead(
            n, d, weights=WEIGHTS, neighbors=NEIGHBORS if lists else 0, device=case.device
        )
        head.momentum = MOMENTUM
        fill(head, case)
        self.memory, self.stored = head.memory.features, head.pseudo_labels
        self._replay = None
        if captured:  # what a graph does is decided now
            with setting(captured):
                self._replay = CapturedIteration(head, case.batches[0])
        case.on_reset(lambda: fill(head, case))
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


def fill(head: sk.SNNetHead, case: Case) -> None:
    """Give ``head`` the content of the case, in place, with a copy of the lists where it would build them."""
    head.memory.features.copy_(case.memory)
    fill_labels(head.pseudo_labels, case.label_memory)
    lists = head.memory.lists
    if lists is not None:
        tables = case.lists
        if lists.tables is None:
            tables = sk.NeighborLists(*(table.clone() for table in tables))
        lists._take(tables, torch.zeros((), dtype=torch.int64, device=case.device))
        head.memory._notice()
        head.memory._vouch_for_lists()


class CapturedIteration:
    """Forward, backward and update of ``head``, captured once and replayed on batches of the same size."""

    WARM_UP = 3  # runs on the stream that captures: whatever is set up at first use is there

    def __init__(self, head: sk.SNNetHead, batch: Batch) -> None:
        self.head = head
        self.index = batch.index.clone()
        self.features = batch.features.detach().clone().requires_grad_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                self._iterate()
        torch.cuda.current_stream().wait_stream(stream)
        self.features.grad = None  # the capture makes its own, which each replay writes anew
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.loss = self._iterate()

    def _iterate(self) -> Tensor:
        self.features.grad = None
        loss = self.head(self.features, self.index)
        loss.backward()
        self.head.update_(self.index, self.features.detach())
        return loss.detach()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to the features [B, d]: buffers, until the next replay."""
        self.index.copy_(batch.index)
        with torch.no_grad():
            self.features.copy_(batch.features)
        self.graph.replay()
        return self.loss, self.features.grad
