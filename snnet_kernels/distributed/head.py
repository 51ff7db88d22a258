"""One training iteration of SNNet whose memories and work are divided over the processes of a group."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import checks
from ..derived import Source
from ..head import SNNetHead
from ..ops.label_memory import unpack_labels
from ..ops.similarity import memory_similarity
from .column_loss import ColumnLoss
from .exchange import Facts
from .label_memory import ShardedPseudoLabelMemory
from .memory import ShardedExemplarMemory
from .packing import packed_entries
from .prediction import OwnRows, Samples


class Batch(NamedTuple):
    """The samples of all processes, and what one forward pass leaves for the update that follows it."""

    samples: Samples
    features: Tensor  # [B, d]
    similarity: Tensor  # [B, m] with the own rows
    own_index: Tensor  # [b], the samples of this process
    source: Source  # its features [b, d]
    memory_version: int


class ShardedHead(SNNetHead):
    """What ``SNNetHead(n, d, process_group=group)`` makes: each process owns rows of M, lists and P, and its samples.

    All processes of the group call :meth:`forward` and :meth:`update_` in the same order, each with its own samples, of
    the same number. They are one global batch, rank 0's samples first: labels, lists, M and P are those of one process
    that gets it. The loss is the mean over the own samples, so that the mean of gradients over the processes, as
    DistributedDataParallel takes it round the network, is that of the global batch. No collective runs in backward.
    What differs between processes is an error on all of them.

    ``state_dict()`` is the piece of this process: see :mod:`snnet_kernels.distributed.state`.
    """

    memory: ShardedExemplarMemory
    pseudo_labels: ShardedPseudoLabelMemory

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.exchange, self.division = self.memory.exchange, self.memory.division
        self._batch: Batch | None = None
        self._statistics: dict[str, Tensor] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> ShardedHead:
        self._batch = None
        super()._apply(fn, recurse)
        return self

    def mark_written_(self) -> None:
        """Say on all ranks that M was written past autograd."""
        self._batch = None
        self.memory.mark_written_()

    @torch.compiler.disable
    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """The loss [] of the own samples' live, L2-normalised ``features`` [b, d], of images ``index`` int64 [b]."""
        index = self.exchange.agreed(
            "forward", self.memory.features.device, lambda: self._checked(features, index), self._facts
        )
        with torch.no_grad():
            batch = self._gathered(features.detach(), index)
            loss, gradient = self._loss(batch)
        self._batch = batch if self.training else None
        return _Loss.apply(features, loss, gradient.to(features.dtype))

    def _checked(self, features: Tensor, index: Tensor) -> Tensor:
        self._refuse_replication()
        checks.check_features("features", features, self.feature_dim)
        index = checks.check_index("index", index, self.num_instances, features.shape[0])
        checks.check_same_device(memory=self.memory.features, features=features, index=index)
        checks.check_no_tangent("features", features)
        self._check_first_lengths(features)
        return index

    def _facts(self, index: Tensor) -> Facts:
        loss = self.loss
        return {
            "the number of samples": len(index),
            "training": int(self.training),
            "warmup": int(self.warmup),
            "threshold": self.threshold,
            "min_rank": self.min_rank,
            "whether label_source is 'feature'": self.label_source == "feature",
            "whether loss_kind is 'l2'": loss.kind == "l2",
            **{f"weights[{k}]": weight for k, weight in enumerate(loss.weights)},
            "delta": loss.delta,
            "hard_negative_ratio": loss.hard_negative_ratio,
            **self.memory.facts(),
        }

    def _gathered(self, features: Tensor, index: Tensor) -> Batch:
        """The samples of all processes."""
        rows = self.exchange.gather(features.to(torch.float32)).flatten(0, 1)
        samples = Samples.of(self.exchange.gather(index).flatten(), self.exchange, self.division)
        source = Source()
        if not features.is_inference():  # such tensors do not count their writes
            source.remember_rows(features)
        similarity = memory_similarity(rows, self.memory.features)
        return Batch(samples, rows, similarity, index, source, self.memory.version)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the own samples and its gradient; in training P gets the main labels."""
        index, products = batch.samples.positions, 0
        if self.warmup:
            labels: tuple[Tensor, ...] = (self._one_hot(index),)
        else:
            lists = self.memory._current_lists(index)
            assert lists.tables is not None
            own = OwnRows(self.memory.features, lists.tables, self.exchange, self.division)
            predicted = own.predict(batch.samples, self.threshold, self.min_rank, self._query_rows(batch))
            labels, products = self.pseudo_labels.inquire(batch.samples, predicted), predicted.products
        counts = self._counted(labels, products)
        if not self.warmup and self.training:
            self.pseudo_labels._write_own_(index, labels[0])
        if len(index) == 0:
            return batch.features.new_zeros(()), batch.features
        weights = (1.0,) if self.warmup else self.loss.weights
        loss = ColumnLoss(self.loss, batch.samples, self.exchange, self.division)
        return loss.of_loaded(
            batch.similarity, self.memory.features, labels, weights, counts[:, : len(labels)]
        )

    def _query_rows(self, batch: Batch) -> Tensor | None:
        """With ``label_source="feature"``: s [b', n] of the samples that this process works on."""
        if self.label_source == "memory":
            return None
        samples, size = batch.samples, self.exchange.size
        parts = [batch.similarity[samples.places(rank)] for rank in range(size)]
        shapes = [(len(samples.own), len(self.division.rows(rank))) for rank in range(size)]
        return torch.cat(self.exchange.send(parts, shapes), dim=1)

    def _one_hot(self, index: Tensor) -> Tensor:
        own = self.memory.own_rows
        here = ((index >= own.start) & (index < own.stop)).nonzero().flatten()
        return packed_entries(here, index[here] - own.start, len(index), len(own))

    def _counted(self, labels: tuple[Tensor, ...], products: int) -> Tensor:
        """How many columns each sample has in each label set, and in the main one and each other: int64 [B, 2·sets−1].

        Keeps the statistics of the global batch, and counts rows that were multiplied beside the lists.
        """
        width, main = len(self.memory.own_rows), labels[0]
        masks = [*labels, *(main & other for other in labels[1:])]
        here = torch.stack([unpack_labels(mask, width).sum(1) for mask in masks], dim=1)
        extra = here.new_full((1, here.shape[1]), products)
        counts = self.exchange.gather(torch.cat([here, extra])).sum(0)
        counts, products_of_all = counts[:-1], counts[-1, 0]
        nan = counts.new_full((), torch.nan, dtype=torch.float32)
        sets, positives = len(labels), counts.float()
        shares = [
            (
                positives[:, sets + k]
                / (positives[:, 0] + positives[:, 1 + k] - positives[:, sets + k]).clamp_min(1)
            ).mean()
            for k in range(sets - 1)
        ] or [nan, nan]
        self._statistics = {
            "positives": positives[:, 0].mean(),
            "agreement_symmetric": shares[0],
            "agreement_neighbor": shares[1],
        }
        if not self.warmup:
            self._statistics["products"] = products_of_all.float()
            self.memory.lists._count(products_of_all, 2 * len(counts))  # labels and neighbours
        return counts

    @torch.no_grad()
    @torch.compiler.disable
    def update_(self, index: Tensor, features: Tensor) -> None:
        """Step 6: blend the own samples' ``features`` [b, d] into M with ``momentum``, and bring the lists up to date.

        What the last forward pass has gathered is used again if these are its features on all ranks, and M has not been
        written since.
        """
        device = self.memory.features.device

        def check() -> Tensor:
            checks.check_momentum(self._momentum, device)
            return self._checked(features, index)

        index = self.exchange.agreed(
            "update_", device, check, lambda found: {**self._facts(found), "momentum": float(self._momentum)}
        )
        if not self.training:
            return
        batch, self._batch = self._batch, None
        if batch is None or self.exchange.any(not self._is_that(batch, features, index), device):
            batch = self._gathered(features.detach(), index)
        everything = batch.samples.positions
        lists = None if self.warmup else self.memory._current_lists(everything)
        # Only now rows that something wrote past autograd are known.
        similarity = batch.similarity if self.memory.version == batch.memory_version else None
        self.memory._blend_(everything, batch.features, self._momentum, similarity, lists)

    def _is_that(self, batch: Batch, features: Tensor, index: Tensor) -> bool:
        """Whether the batch was gathered of these features and this memory."""
        if features.is_inference() or batch.memory_version != self.memory.version:
            return False
        every_row = (
            torch.arange(len(features), device=features.device) if features.device.type == "cpu" else None
        )
        return batch.source.holds(features, every_row) and torch.equal(batch.own_index, index)

    def label_statistics(self) -> dict[str, Tensor]:
        """As :meth:`SNNetHead.label_statistics`, of the global batch; no collective."""
        if not self._statistics:
            raise RuntimeError("label_statistics() needs a forward pass first")
        return dict(self._statistics)


class _Loss(torch.autograd.Function):
    """A loss whose gradient is at hand."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None
