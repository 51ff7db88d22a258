"""The loss of a batch over columns that are divided over processes, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..label_loss import MutualLabelLoss
from ..ops.label_memory import unpack_labels
from ..ops.shard_loss import hard_negative_bars, largest_negatives, own_columns_loss
from .exchange import Exchange, as_type, padded
from .prediction import Samples
from .rows import Division


class ColumnLoss:
    """The part of the loss (Eq. 8) that falls on the columns that this process owns."""

    def __init__(
        self, options: MutualLabelLoss, samples: Samples, exchange: Exchange, division: Division
    ) -> None:
        self.options, self.samples, self.exchange, self.division = options, samples, exchange, division
        self.first = division.rows(exchange.rank).start
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

        ``aboard`` travels with it: the third result is that of all processes, [R, ...].
        """
        active = [k for k, weight in enumerate(weights) if weight > 0]
        shares = similarity.new_tensor([weights[k] for k in active], dtype=torch.float64)
        labels, shares = [labels[k] for k in active], shares / shares.sum()
        if self.options.kind == "l2":
            losses, gradient = self._l2(similarity, memory, labels, shares)
            aboard = self.exchange.gather(aboard)
        else:
            losses, gradient, aboard = self._mmcl(
                similarity, memory, labels, shares, positives[:, active], aboard
            )
        size, loaded = self.division.size, len(similarity) // self.division.size
        packed = torch.cat([gradient, losses.view(torch.float32).view(len(similarity), 2)], dim=1)
        parts = self.exchange.send(packed.split(loaded), [(loaded, packed.shape[1])] * size)
        gradient = torch.stack([part[:, :-2] for part in parts]).sum(0)
        loss = torch.stack([as_type(part[:, -2:], torch.float64) for part in parts]).sum()
        return loss.to(torch.float32), gradient, aboard

    def _l2(
        self, similarity: Tensor, memory: Tensor, labels: Sequence[Tensor], shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, slope = (
            similarity.new_zeros(len(similarity), dtype=torch.float64),
            torch.zeros_like(similarity),
        )
        for label, share in zip(labels, shares.tolist(), strict=True):
            difference = similarity - unpack_labels(label, len(memory)).float()
            losses += self.scale * share * difference.double().square().sum(1)
            slope += 2 * self.scale * share * difference
        return losses, slope @ memory

    def _mmcl(
        self,
        similarity: Tensor,
        memory: Tensor,
        labels: Sequence[Tensor],
        shares: Tensor,
        positives: Tensor,
        aboard: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each process sends the owner of a sample its largest negatives as keys; the owner answers with the key from
        which on they are hard, for each label set. What is sent grows until it is sure to have held them.
        """
        n, ratio = self.division.n, self.options.hard_negative_ratio
        hard = (ratio * (n - positives).double()).floor().long().clamp_min(1).minimum(n - positives)
        most = max(1, math.floor(ratio * n))
        share = min(n, most // self.division.size + 4 * math.isqrt(most) + 8)
        while True:
            bars, aboard_of_all, are_sure = self._bars(similarity, labels, share, hard, aboard)
            if are_sure:
                break
            share = min(2 * share, n)
        positive_weights = self.options.delta * self.scale * shares / positives.clamp_min(1)
        hard_weights = self.scale * shares / hard.clamp_min(1)
        both = positive_weights.contiguous(), hard_weights.contiguous()
        return *own_columns_loss(similarity, memory, labels, self.first, bars, *both), aboard_of_all

    def _bars(
        self, similarity: Tensor, labels: Sequence[Tensor], share: int, hard: Tensor, aboard: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """The key int64 [B, sets] of the last hard negative of each sample and label set; ``aboard`` of all; and
        whether all keys are sure."""
        keys, sets = largest_negatives(similarity, labels, self.first, share)
        samples, size = self.samples, self.exchange.size
        packed = torch.cat([keys.view(torch.uint8), sets], dim=1)[samples.order]
        shape = len(samples.own), packed.shape[1]
        parts = self.exchange.send(packed.split(samples.counts), [shape] * size)
        keys = torch.stack([as_type(part[:, : 8 * share], torch.int64) for part in parts], dim=1)
        sets = torch.stack([part[:, 8 * share :] for part in parts], dim=1)  # both [b, R, share]
        bars, sure = hard_negative_bars(keys, sets, hard[samples.own].contiguous())
        answer = padded(torch.cat([bars, sure[:, None].long()], dim=1), max(samples.counts))
        answers, aboard_of_all = self.exchange.gather_all([answer, aboard])
        found = samples.of_owners(answers)
        return found[:, :-1].contiguous(), aboard_of_all, bool(found[:, -1].all())
