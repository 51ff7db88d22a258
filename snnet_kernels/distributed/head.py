"""One training iteration of SNNet whose memories and work are divided over the processes of a group."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from .. import checks
from ..derived import Source
from ..head import SNNetHead, check_three_weights, labels_to_write, statistics
from ..layout import packed_entries
from ..ops.similarity import memory_similarity
from .column_loss import ColumnLoss
from .exchange import Facts, check_group
from .label_memory import LabelSets, ShardedPseudoLabelMemory
from .memory import ShardedExemplarMemory
from .prediction import sent_keys
from .rows import Samples

OTHER_BATCH, STALE_LISTS = 1, 2  # told before an update


class Batch(NamedTuple):
    """The samples of all processes, and what one forward pass leaves for the update that follows it."""

    samples: Samples
    features: Tensor  # [B, d]
    similarity: Tensor  # [B, m] with the own rows
    own_index: Tensor  # [b], the samples of this process, as they were then
    source: Source  # its features [b, d]
    memory_version: int


class ShardedHead(SNNetHead):
    """What ``SNNetHead(n, d, process_group=group)`` makes: each process owns rows of M and of the
    lists, columns of P, and its samples.

    All processes of the group call :meth:`forward` and :meth:`update_` in the same order, each with its own samples, of
    the same number. They are one global batch, rank 0's samples first: labels, lists, M and P are those of one process
    that gets it, but for when lists are renewed: see :meth:`ShardedExemplarMemory.renew_lists_`. The loss is the mean
    over the own samples, so that the mean of gradients over the processes, as DistributedDataParallel takes it round
    the network, is that of the global batch. No collective runs in backward. What differs between processes is an error
    on all of them.

    ``state_dict()`` is the piece of this process: see :func:`.whole_state`.
    """

    memory: ShardedExemplarMemory
    pseudo_labels: ShardedPseudoLabelMemory
    _last_forward: Batch | None  # type: ignore[assignment]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.exchange, self.division = self.memory.exchange, self.memory.division
        self._counted: tuple[Tensor, Tensor, Tensor | None] | None = None  # what statistics are made of

    def _check_group(self, process_group: ProcessGroup | None) -> None:
        check_group(process_group)

    @torch.compiler.disable
    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """The loss [] of the own samples' live, L2-normalised ``features`` [b, d], of images ``index`` int64 [b]."""
        told = self.exchange.agreed_with(
            "forward", self.memory.features.device, lambda: self._checked(features, index), self._facts,
            lambda checked: (0, _travelling(features.detach(), checked)),
        )  # fmt: skip
        with torch.no_grad():
            batch = self._gathered(features.detach(), told.checked, told.tensors)
            loss, gradient = self._loss(batch)
        self._last_forward = batch if self.training else None
        if self.training:
            self.exchange.room.bytes = self._bytes_of_update(batch)
        return _Loss.apply(features, loss, gradient)

    def _facts(self, index: Tensor) -> Facts:
        threshold, min_rank = checks.check_prediction_options(self.threshold, self.min_rank)
        kind, delta, ratio = checks.check_loss_options(**self.loss.options())
        weights = check_three_weights(self.loss.weights)
        return {
            "the number of samples": len(index),
            "training": int(self.training),
            "warmup": int(self.warmup),
            "threshold": threshold,
            "min_rank": min_rank,
            "whether label_source is 'feature'": self.label_source == "feature",
            "whether loss_kind is 'l2'": kind == "l2",
            **{f"weights[{k}]": weight for k, weight in enumerate(weights)},
            "delta": delta,
            "hard_negative_ratio": ratio,
            **self.memory._facts(),
        }

    def _gathered(self, features: Tensor, index: Tensor, tensors: list[Tensor] | None = None) -> Batch:
        """The samples of all processes, of which ``tensors`` [R, ...] have travelled already."""
        everything, rows = tensors or self.exchange.gather_all(_travelling(features, index))
        rows = rows.flatten(0, 1)
        samples = Samples(everything.flatten(), self.division)
        source = Source()
        if not features.is_inference():  # such tensors do not count their writes
            source.remember_rows(features)
        similarity = memory_similarity(rows, self.memory.features)
        return Batch(samples, rows, similarity, index.clone(), source, self.memory.version)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the own samples and its gradient; in training P gets the main labels."""
        samples, products = batch.samples, 0
        if self.warmup:
            sets = self._one_hot(samples.positions)
        else:
            predicted = self.memory._predicted(
                samples,
                self.threshold,
                self.min_rank,
                self._live_keys(batch),
                self.pseudo_labels._inquiry(samples),
            )
            sets, products = self.pseudo_labels._label_sets(samples, predicted), predicted.products
            if self.training:
                index, labels = samples.positions, sets.packed[0]
                if self.label_source == "feature":
                    old = self.pseudo_labels.tables.rows(index)
                    index, labels = labels_to_write(batch.features, index, labels, old)
                self.pseudo_labels._write_own_(index, labels)
        if len(samples.positions) == 0:
            self._keep_statistics(sets, sets.common[None], products)
            return batch.features.new_zeros(()), batch.features
        weights = (1.0,) if self.warmup else self.loss.weights
        loss, gradient, common = ColumnLoss(self.loss, samples, self.exchange, self.division).of_loaded(
            batch.similarity, self.memory.features, sets.packed, weights, sets.positives, sets.common
        )
        self._keep_statistics(sets, common, products)
        return loss, gradient

    def _live_keys(self, batch: Batch) -> Tensor | None:
        """With ``label_source="feature"``: what s tells of the samples that this process works on."""
        if self.label_source == "memory":
            return None
        return sent_keys(
            batch.similarity, self.division.first, slice(None), batch.samples, self.threshold, self.exchange
        )

    def _one_hot(self, index: Tensor) -> LabelSets:
        own = self.memory.own_rows
        here = ((index >= own.start) & (index < own.stop)).nonzero().flatten()
        packed = packed_entries(here, index[here] - own.start, len(index), len(own))
        return LabelSets(
            (packed,), torch.ones_like(index)[:, None], index.new_zeros(len(index), 0, dtype=torch.int32)
        )

    def _keep_statistics(self, sets: LabelSets, common: Tensor, products: int) -> None:
        """Of the global batch, of what all processes have counted in their columns, ``common`` [R, B, sets - 1]."""
        made = torch.tensor(products, device=common.device)
        self._counted = sets.positives, common, None if self.warmup else made
        if not self.warmup and len(sets.positives):  # else there may be no lists
            self.memory.lists.asked.add_(len(sets.positives))  # neighbours, which came with the labels

    def _bytes_of_update(self, batch: Batch) -> int:
        """What an update of this batch has to carry."""
        if self.warmup or len(batch.samples.positions) == 0:
            return 0
        return 4 * batch.samples.rounds[0][1].most * (self.feature_dim + 2 + self.memory.lists.width)

    @torch.no_grad()
    @torch.compiler.disable
    def update_(self, index: Tensor, features: Tensor) -> None:
        """Step 6: blend the own samples' ``features`` [b, d] into M with ``momentum``, and bring the lists up to date.

        What the last forward pass has gathered is used again if these are its features on all ranks, and M has not been
        written since.
        """
        device = self.memory.features.device
        mine = list[Tensor]()

        def check() -> Tensor:
            checks.check_momentum(self._momentum, device)
            return self._checked(features, index)

        def carry(checked: Tensor) -> tuple[int, list[Tensor]]:
            batch = self._last_forward
            if batch is None or not self._is_that(batch, features, checked):
                return OTHER_BATCH, []
            if self.warmup or not self.training:
                return 0, []
            if self.memory._are_stale(batch.samples.rows):
                return STALE_LISTS, []
            mine.append(self._blended(batch))
            return 0, mine

        told = self.exchange.agreed_with(
            "update_", device, check,
            lambda found: {**self._facts(found), "momentum": float(self._momentum)}, carry,
        )  # fmt: skip
        if not self.training:
            return
        batch, self._last_forward = self._last_forward, None
        blended, stale = None, False
        if batch is None or OTHER_BATCH in told.flags:
            batch = self._gathered(features.detach(), told.checked)
            if not self.warmup:
                stale = self.memory._any_are_stale(batch.samples.rows)
        elif STALE_LISTS in told.flags:
            stale = True
        elif mine:
            (blended,) = told.tensors or self.exchange.gather_all(mine)
        # Only now rows that something wrote past autograd are known.
        similarity = batch.similarity if self.memory.version == batch.memory_version else None
        lists = None if self.warmup or stale else self.memory.lists
        self.memory._blend_(batch.samples, batch.features, self._momentum, similarity, lists, blended)

    def _blended(self, batch: Batch) -> Tensor:
        """What the own rows become, as it travels."""
        entries, samples = batch.samples.rounds[0] if batch.samples.rounds else (slice(None), batch.samples)
        features = batch.features[entries]
        return self.memory.lists.blended(self.memory.features, samples, features, self._momentum)

    def _is_that(self, batch: Batch, features: Tensor, index: Tensor) -> bool:
        """Whether the batch was gathered of these features and this memory."""
        if features.is_inference() or batch.memory_version != self.memory.version:
            return False
        return batch.source.holds_all(features) and torch.equal(batch.own_index, index)

    def label_statistics(self) -> dict[str, Tensor]:
        """As :meth:`SNNetHead.label_statistics`, of the global batch; no collective."""
        if self._counted is None:
            raise RuntimeError("label_statistics() needs a forward pass first")
        positives, common, products = self._counted
        return statistics(positives.unbind(1), common.sum(0).unbind(1), products)


def _travelling(features: Tensor, index: Tensor) -> list[Tensor]:
    """The samples of a process as they go to all."""
    return [index, features.to(torch.float32)]


class _Loss(torch.autograd.Function):
    """A loss whose gradient is at hand."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = features.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.dtype), None, None  # rounded once, with the scale of the loss
