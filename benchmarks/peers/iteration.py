"""A whole iteration without the backbone, un-fused: the label memory a bool matrix, the loss on dense labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnet_kernels import reference

from ..case import MIN_RANK, THRESHOLD, WEIGHTS, Batch, Case
from .compiling import compiled, static
from .labels import (
    label_rows,
    largest_number_of_candidates,
    nearest_others,
    predict_labels,
    predict_labels_static,
)
from .loss import dense_mmcl
from .memory import blend_, blend_with_cache_
from .storage import dense_copy

Update = Callable[[Tensor], None]


class Iteration:
    """Loss, gradient and update; :meth:`loss` is what the forms differ in."""

    def loss(self, features: Tensor, index: Tensor) -> tuple[Tensor, Update]:
        """The loss of ``features`` [B, d], and the update to be called with them after the backward pass."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to the features [B, d]."""
        features = batch.features.detach().clone().requires_grad_()
        loss, update = self.loss(features, batch.index)
        loss.backward()
        update(features.detach())
        return loss.detach(), features.grad


class DenseIteration(Iteration):
    """Vectorised PyTorch, with our cache (``case.memory`` and ``case.cache``) or without (``case.scratch_memory``)."""

    def __init__(self, case: Case, *, cached: bool) -> None:
        self.memory = case.memory if cached else case.scratch_memory
        self.cache = case.cache if cached else None
        self.labels = dense_copy(case, torch.bool)
        self.momentum = case.momentum

    def loss(self, features: Tensor, index: Tensor) -> tuple[Tensor, Update]:
        similarity = features @ self.memory.t()
        rows = label_rows(self.memory, index, self.cache)
        main = predict_labels(self.memory, index, rows, self.cache)
        neighbor = nearest_others(index, rows)[0].squeeze(1)
        symmetric, of_neighbor = self.labels[:, index].t(), self.labels[neighbor]
        self.labels[index] = main
        loss = dense_mmcl(similarity, (main, symmetric, of_neighbor))
        return loss, lambda after: self._update(index, after, similarity.detach())

    def _update(self, index: Tensor, features: Tensor, similarity: Tensor) -> None:
        if self.cache is None:
            blend_(self.memory, index, features, self.momentum)
        else:
            reference.update_memory_(
                self.memory, index, features, self.momentum, cache=self.cache, similarity=similarity
            )


class LoopIteration(Iteration):
    """Sample by sample."""

    def __init__(self, case: Case) -> None:
        self.memory = case.scratch_memory
        self.labels = dense_copy(case, torch.bool)
        self.momentum = case.momentum

    def loss(self, features: Tensor, index: Tensor) -> tuple[Tensor, Update]:
        forms = reference.loop
        similarity = features @ self.memory.t()
        main = forms.mplp(self.memory, index, THRESHOLD, MIN_RANK)
        neighbor = forms.nearest_neighbors(self.memory, index)[0][:, 0]
        symmetric = reference.pack_labels(self.labels[:, index].t())
        of_neighbor = reference.pack_labels(self.labels[neighbor])
        forms.write_labels_(self.labels, index, main)
        loss = forms.mutual_label_loss(similarity, (main, symmetric, of_neighbor), WEIGHTS)
        return loss, lambda after: forms.update_memory_(self.memory, index, after, self.momentum)


class StaticIteration(Iteration):
    """Written for torch.compile: every shape known, one graph forward, one backward, one for the update."""

    def __init__(self, case: Case) -> None:
        memory, cache, momentum = case.memory, case.cache, case.momentum
        labels = dense_copy(case, torch.bool)
        static(memory, cache, labels)
        width = largest_number_of_candidates(cache)
        self.memory, self.cache, self.labels = memory, cache, labels

        def forward(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            similarity = features @ memory.t()
            rows = cache[index]
            main = predict_labels_static(index, rows, cache, width)
            own = torch.arange(rows.shape[1], device=rows.device) == index[:, None]
            neighbor = rows.masked_fill(own, -torch.inf).argmax(1)
            symmetric, of_neighbor = labels[:, index].t().clone(), labels[neighbor]
            labels[index] = main
            return dense_mmcl(similarity, (main, symmetric, of_neighbor)), similarity

        def update(index: Tensor, features: Tensor, similarity: Tensor) -> None:
            blend_with_cache_(memory, cache, index, features, momentum, similarity)

        self._forward, self._update = compiled(forward, case.device), compiled(update, case.device)

    def loss(self, features: Tensor, index: Tensor) -> tuple[Tensor, Update]:
        loss, similarity = self._forward(features, index)
        return loss, lambda after: self._update(index, after, similarity.detach())
