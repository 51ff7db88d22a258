"""The label work of an iteration in the forms that one would write instead, each with memories of its own.

A form finds labels and neighbours of a batch, keeps the label memory P, and updates what it keeps. From these parts
:meth:`Form.step` makes all label work with s at hand, and :meth:`Form.iterate` a whole iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from snnet_kernels import reference

from . import pytorch
from .case import MIN_RANK, THRESHOLD, WEIGHTS, Batch, Case
from .operation import GPU, Operation

Neighbors = tuple[Tensor, Tensor]  # index and similarity [B, 1]
Update = Callable[[Tensor], None]


class DenseLabels:
    """P as a matrix of ``dtype`` [n, n], with the methods of :class:`snnet_kernels.PseudoLabelMemory`."""

    def __init__(self, case: Case, *, dtype: torch.dtype = torch.bool) -> None:
        self.by_row = case.own_dense_labels(dtype)
        self.by_column = self.by_row.t()

    def buffers(self) -> list[Tensor]:
        return [self.by_row]

    def rows(self, index: Tensor) -> Tensor:
        return self.by_row[index]

    def columns(self, index: Tensor) -> Tensor:
        return self.by_column[index]

    def write_(self, index: Tensor, labels: Tensor) -> None:
        self.by_row[index] = labels.to(self.by_row.dtype)


class MirroredLabels(DenseLabels):
    """A bool matrix beside its transpose: columns lie together too, and a write touches only those that change."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.by_column = case.own_dense_labels(torch.bool, transposed=True)

    def buffers(self) -> list[Tensor]:
        return [self.by_row, self.by_column]

    def write_(self, index: Tensor, labels: Tensor) -> None:
        row, column = (self.by_row[index] ^ labels).nonzero(as_tuple=True)
        self.by_row[index] = labels
        self.by_column[column, index[row]] = labels[row, column]


class Form:
    """Vectorised PyTorch that counts ranks instead of sorting, with the matrix S or without.

    The base of all other forms, ours too: they replace ``labels``, ``exchange_``, ``update_`` or ``loss``.
    """

    kept: Any  # beside the memory: S [n, n], lists or None
    ranks = staticmethod(pytorch.ranks_in_parts)
    keep_labels: Callable[[Case], Any] = MirroredLabels

    def __init__(self, case: Case, *, matrix: bool = False) -> None:
        self.case = case
        self.memory = case.own(case.memory)
        self.kept = case.own(case.matrix) if matrix else None

    @cached_property
    def stored(self) -> Any:
        """P."""
        return self.keep_labels(self.case)

    @cached_property
    def product(self) -> Callable[[Tensor, Tensor], Tensor]:
        return pytorch.fastest_product(self.case.batches[0].features, self.memory)

    def compile(self, *methods: str, dynamic: bool | None = None) -> None:
        for name in methods:
            setattr(self, name, pytorch.compiled(getattr(self, name), self.case.device, dynamic=dynamic))

    def buffers(self) -> list[Tensor]:
        """What is kept between calls beside M: S or lists, and P if it was made."""
        kept = [self.kept] if isinstance(self.kept, Tensor) else self.kept or ()
        stored = self.stored.buffers() if "stored" in vars(self) else ()
        return [part for part in (*kept, *stored) if part is not None]

    def labels(self, index: Tensor) -> tuple[Any, Neighbors]:
        """The main labels of ``index`` [B] and the nearest others."""
        if self.kept is None:
            rows = self.product(self.memory[index], self.memory)
            labels = pytorch.predict_labels(self.memory, index, rows)
        else:
            rows = self.kept[index]
            labels = pytorch.predict_labels_from_matrix(index, rows, self.kept, self.ranks)
        return labels, pytorch.nearest_others(index, rows)

    def exchange_(self, index: Tensor, neighbor: Tensor, main: Any) -> tuple[Any, Any]:
        """The symmetric and the neighbour labels from P; then the main labels are written to it."""
        others = self.stored.columns(index), self.stored.rows(neighbor)
        self.stored.write_(index, main)
        return others

    def update_(self, index: Tensor, features: Tensor, similarity: Any) -> None:
        """The momentum update of M and of what is kept beside it."""
        momentum = self.case.momentum
        if self.kept is None:
            pytorch.blend_(self.memory, index, features, momentum)
        else:
            pytorch.blend_with_matrix_(self.memory, self.kept, index, features, momentum, similarity)

    def loss(self, similarity: Tensor, labels: tuple[Any, ...]) -> Tensor:
        return pytorch.dense_mmcl(similarity, labels)

    def find_and_update_(self, index: Tensor, features: Tensor, similarity: Any) -> tuple[Any, Neighbors]:
        """Labels, neighbours and update of a batch."""
        found = self.labels(index)
        self.update_(index, features, similarity)
        return found

    def step(self, batch: Batch) -> tuple[tuple[Any, Any, Any], Neighbors]:
        """All label work of an iteration with s at hand, which is for what is kept beside the memory.

        Gives the main, symmetric and neighbour labels, and the neighbours.
        """
        similarity = None if self.kept is None else batch.similarity
        main, neighbors = self.find_and_update_(batch.index, batch.features, similarity)
        return (main, *self.exchange_(batch.index, neighbors[0].reshape(-1), main)), neighbors

    def forward(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of ``features`` [B, d], and s."""
        similarity = self.product(features, self.memory)
        main, (neighbor, _) = self.labels(index)
        others = self.exchange_(index, neighbor.reshape(-1), main)
        return self.loss(similarity, (main, *others)), similarity

    def iterate(self, features: Tensor, index: Tensor) -> tuple[Tensor, Update]:
        """The loss of ``features``, and the update to be called with them after the backward pass."""
        loss, similarity = self.forward(features, index)
        return loss, lambda after: self.update_(index, after, similarity.detach())

    def iteration(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A whole iteration without a backbone: the loss, and its gradient with respect to the features [B, d]."""
        features = batch.features.detach().clone().requires_grad_()
        loss, update = self.iterate(features, batch.index)
        loss.backward()
        update(features.detach())
        return loss.detach(), features.grad


class CompiledForm(Form):
    """torch.compile of the vectorised form without S as it is."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        pytorch.static(self.memory)
        self.compile("find_and_update_", dynamic=True)
        self.compile("update_")


class CompiledCacheForm(Form):
    """With S: torch.compile of the three parts that are one loop each: the ranks, the recurrence and the loss."""

    ranks = staticmethod(pytorch.ranks_of)

    def __init__(self, case: Case) -> None:
        super().__init__(case, matrix=True)
        pytorch.static(self.memory, self.kept)
        self.compile("ranks", dynamic=True)
        self.compile("update_", "loss")


class StaticForm(Form):
    """Written for CUDA graphs, with S: every shape known, one graph a step; of an iteration one for the update."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, matrix=True)
        pytorch.static(self.memory, self.kept)
        self._width = pytorch.largest_number_of_candidates(self.kept)
        self.compile("labels", "update_", "find_and_update_", "forward")

    @cached_property
    def stored(self) -> DenseLabels:
        made = DenseLabels(self.case)
        pytorch.static(made.by_row)
        return made

    def labels(self, index: Tensor) -> tuple[Tensor, Neighbors]:
        rows = self.kept[index]
        labels = pytorch.predict_labels_static(index, rows, self.kept, self._width)
        own = torch.arange(rows.shape[1], device=rows.device) == index[:, None]
        nearest, neighbor = rows.masked_fill(own, -torch.inf).max(1)
        return labels, (neighbor, nearest)


class LoopForm(Form):
    """Sample by sample, as the code bases of this field do it, with P as one bool matrix."""

    keep_labels = DenseLabels
    product = staticmethod(pytorch.PRODUCTS["pytorch"])

    def labels(self, index: Tensor) -> tuple[Tensor, Neighbors]:
        labels = reference.loop.mplp(self.memory, index, THRESHOLD, MIN_RANK)
        return labels, reference.loop.nearest_neighbors(self.memory, index)

    def exchange_(self, index: Tensor, neighbor: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
        others = self.stored.columns(index), self.stored.rows(neighbor)
        reference.loop.write_labels_(self.stored.by_row, index, main)
        return tuple(map(reference.pack_labels, others))

    def update_(self, index: Tensor, features: Tensor, similarity: Any) -> None:
        reference.loop.update_memory_(self.memory, index, features, self.case.momentum)

    def loss(self, similarity: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        return reference.loop.mutual_label_loss(similarity, labels, WEIGHTS)


# How each is made, and options of the contender.
FORMS: dict[str, dict[str, Any]] = {
    "pytorch-cache": {"make": partial(Form, matrix=True)},
    "compile-cache": {"make": CompiledCacheForm},
    "compile-static": {"make": StaticForm, "devices": GPU},
    "pytorch": {"make": Form},
    "compile": {"make": CompiledForm},
    "loop": {"make": LoopForm, "once": True},
}


def add_forms(operation: Operation, *names: str) -> None:
    for name in names:
        operation.contender(name, **FORMS[name])
