"""The loss of a batch over columns that are divided over processes, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..label_loss import MutualLabelLoss
from ..ops.label_memory import unpack_labels
from ..ops.shard_loss import largest_negatives, own_columns_loss
from ..selection_keys import HIGHEST_KEY, NO_KEY
from .exchange import Exchange
from .prediction import Samples
from .rows import Division


class ColumnLoss:
    """The part of the loss (Eq. 8) that falls on the columns that this process owns."""

    def __init__(
        self, options: MutualLabelLoss, samples: Samples, exchange: Exchange, division: Division
    ) -> None:
        self.options, self.samples, self.exchange, self.division = options, samples, exchange, division
        self.first = division.rows(exchange.rank).start
        self.scale = division.size / max(
            len(samples.positions), 1
        )  # the mean over the samples of one process

    def of_loaded(
        self,
        similarity: Tensor,  # [B, m], of the features of all processes with the own rows
        memory: Tensor,  # [m, d], the own rows
        labels: Sequence[Tensor],  # uint8 [B, label_bytes(m)] each, of the own columns
        weights: Sequence[float],
        positives: Tensor,  # int64 [B, sets], in all columns
    ) -> tuple[Tensor, Tensor]:
        """The loss [] of the samples that this process has loaded, over all columns, and its gradient [b, d]."""
        active = [k for k, weight in enumerate(weights) if weight > 0]
        shares = similarity.new_tensor([weights[k] for k in active], dtype=torch.float64)
        labels, shares = [labels[k] for k in active], shares / shares.sum()
        if self.options.kind == "l2":
            losses, gradient = self._l2(similarity, memory, labels, shares)
        else:
            losses, gradient = self._mmcl(similarity, memory, labels, shares, positives[:, active])
        size, loaded = self.division.size, len(similarity) // self.division.size
        packed = torch.cat([gradient, losses.view(torch.float32).view(len(similarity), 2)], dim=1)
        parts = self.exchange.send(packed.split(loaded), [(loaded, packed.shape[1])] * size)
        gradient = torch.stack([part[:, :-2] for part in parts]).sum(0)
        loss = torch.stack([_as(part[:, -2:], torch.float64) for part in parts]).sum()
        return loss.to(torch.float32), gradient

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
        self, similarity: Tensor, memory: Tensor, labels: Sequence[Tensor], shares: Tensor, positives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each process sends the owner of a sample its largest negatives as keys; the owner answers with the key from
        which on they are hard, for each label set. What is sent grows until it is sure to have held them.
        """
        n, ratio = self.division.n, self.options.hard_negative_ratio
        hard = (ratio * (n - positives).double()).floor().long().clamp_min(1).minimum(n - positives)
        most = max(1, math.floor(ratio * n))
        share = min(n, most // self.division.size + 4 * math.isqrt(most) + 8)
        while True:
            bars, certain = self._bars(similarity, labels, share, hard)
            if certain:
                break
            share = min(2 * share, n)
        positive_weights = self.options.delta * self.scale * shares / positives.clamp_min(1)
        hard_weights = self.scale * shares / hard.clamp_min(1)
        both = positive_weights.contiguous(), hard_weights.contiguous()
        return own_columns_loss(similarity, memory, labels, self.first, bars, *both)

    def _bars(
        self, similarity: Tensor, labels: Sequence[Tensor], share: int, hard: Tensor
    ) -> tuple[Tensor, bool]:
        """The key int64 [B, sets] of the last hard negative of each sample and label set, and whether all are sure."""
        keys, sets = largest_negatives(similarity, labels, self.first, share)
        packed = torch.cat([keys.view(torch.uint8), sets], dim=1)
        size, own = self.exchange.size, self.samples.own
        order = [self.samples.places(rank) for rank in range(size)]
        parts = self.exchange.send([packed[places] for places in order], [(len(own), packed.shape[1])] * size)
        keys = torch.stack([_as(part[:, : 8 * share], torch.int64) for part in parts], dim=1)
        sets = torch.stack([part[:, 8 * share :] for part in parts], dim=1)  # both [b, R, share]
        wanted, lowest = hard[own], keys.amin(2)  # above NO_KEY: there may be more behind it
        bars = torch.full_like(wanted, HIGHEST_KEY)
        uncertain = torch.zeros(len(own), dtype=torch.bool, device=own.device)
        for k in range(wanted.shape[1]):
            negative = (
                keys.masked_fill((sets >> k & 1) == 0, NO_KEY).flatten(1).sort(dim=1, descending=True).values
            )
            place = wanted[:, k, None] - 1
            bar = negative.gather(1, place.clamp(0, negative.shape[1] - 1)).squeeze(1)
            missing = place.squeeze(1) >= negative.shape[1]
            bars[:, k] = torch.where(wanted[:, k] > 0, bar, HIGHEST_KEY)
            uncertain |= (wanted[:, k] > 0) & (missing | (lowest > bar[:, None]).any(1))
        answer = torch.cat([bars, uncertain[:, None].long()], dim=1)
        blocks = self.exchange.gather_rows(answer, self.samples.counts)
        found = answer.new_empty(len(similarity), answer.shape[1])
        for places, block in zip(order, blocks, strict=True):
            found[places] = block
        return found[:, :-1].contiguous(), not bool(found[:, -1].any())


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes as a wider type. What has one row may call itself contiguous with any stride: it is copied."""
    return tensor.clone(memory_format=torch.contiguous_format).view(dtype)
