"""The loss of a batch over columns that are divided over processes, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..label_loss import MutualLabelLoss
from ..memory_size import row_parts
from ..ops.label_memory import unpack_labels
from ..ops.shard_loss import hard_negative_bars, largest_negatives, own_columns_loss
from ..precision import matmul
from .exchange import Exchange, padded
from .rows import Division, Samples


class ColumnLoss:
    """The part of the loss (Eq. 8) that falls on the columns that this process owns."""

    def __init__(
        self, options: MutualLabelLoss, samples: Samples, exchange: Exchange, division: Division
    ) -> None:
        self.options, self.samples, self.exchange, self.division = options, samples, exchange, division
        self.first = division.first
        batch = max(len(samples.positions), 1)
        self.scale = division.size / batch  # the mean over the samples of one process

    def of_loaded(
        self,
        similarity: Tensor,  # [B, m], of the features of all processes with the own rows
        memory: Tensor,  # [m, d], the own rows
        labels: Sequence[Tensor],  # uint8 [B, label_bytes(m)] each, of the own columns
        weights: Sequence[float],
        positives: Tensor,  # int64 [B, sets], in all columns
        aboard: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss [] of the samples that this process has loaded, over all columns, and its gradient [b, d].

        ``aboard`` is sent with an exchange that is made anyway; the third result is what all processes sent of it,
        [R, ...].
        """
        active = [k for k, weight in enumerate(weights) if weight > 0]
        if len(active) < len(labels):
            labels, positives = [labels[k] for k in active], positives[:, active].contiguous()
        total = sum(weights[k] for k in active)
        shares = [self.scale * weights[k] / total for k in active]
        if self.options.kind == "l2":
            losses, gradient = self._l2(similarity, memory, labels, shares)
            aboard = self.exchange.gather(aboard)
        else:
            losses, gradient, aboard = self._mmcl(similarity, memory, labels, shares, positives, aboard)
        size, loaded = self.division.size, len(similarity) // self.division.size
        packed = torch.cat([gradient, losses.view(torch.float32).view(len(similarity), 2)], dim=1)
        found = self.exchange.send(packed, [loaded] * size, [loaded] * size).view(size, loaded, -1)
        loss = found[..., -2:].contiguous().view(-1).view(torch.float64).sum()
        return loss.to(torch.float32), found[..., :-2].sum(0), aboard

    def _l2(
        self, similarity: Tensor, memory: Tensor, labels: Sequence[Tensor], shares: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        losses = similarity.new_zeros(len(similarity), dtype=torch.float64)
        slope = torch.zeros_like(similarity)
        for part in row_parts(*similarity.shape):
            for label, share in zip(labels, shares, strict=True):
                difference = similarity[part] - unpack_labels(label[part], len(memory)).float()
                losses[part] += share * difference.double().square().sum(1)
                slope[part] += 2 * share * difference
        return losses, matmul(slope, memory)

    def _mmcl(
        self,
        similarity: Tensor,
        memory: Tensor,
        labels: Sequence[Tensor],
        shares: Sequence[float],
        positives: Tensor,
        aboard: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each process sends the owner of a sample its largest negatives as keys; the owner answers with the key from
        which on they are hard, for each label set. What is sent grows until it is sure to have held them.
        """
        n, ratio = self.division.n, self.options.hard_negative_ratio
        most = max(1, math.floor(ratio * n))
        share = min(n, most // self.division.size + 4 * math.isqrt(most) + 8)
        while True:
            negatives = largest_negatives(similarity, labels, self.samples.order, self.first, share)
            told, aboard_of_all = self._bars(negatives, positives, aboard)
            if bool(told[:, -1].all()):
                break
            share = min(2 * share, n)
        losses, gradient = own_columns_loss(
            similarity, memory, labels, self.samples.order, negatives, self.first, told[:, :-1].contiguous(),
            positives, shares, self.options.delta, n, ratio,
        )  # fmt: skip
        return losses, gradient, aboard_of_all

    def _bars(self, negatives: Tensor, positives: Tensor, aboard: Tensor) -> tuple[Tensor, Tensor]:
        """The key of the last hard negative of each sample and label set, and whether these are sure, int64 [B, sets +
        1]; ``aboard`` of all."""
        samples, size = self.samples, self.exchange.size
        found = self.exchange.send(negatives, samples.counts, [len(samples.own)] * size)
        bars = hard_negative_bars(
            found.view(size, len(samples.own), negatives.shape[1]),
            positives[samples.own],
            self.division.n,
            self.options.hard_negative_ratio,
        )
        answers, aboard_of_all = self.exchange.gather_all([padded(bars, samples.most), aboard])
        return samples.of_owners(answers), aboard_of_all
