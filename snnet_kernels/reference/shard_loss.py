"""The part of the mutual label loss that falls on the columns that one process owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..selection_keys import HIGHEST_KEY, NO_KEY, keys_of
from .label_memory import unpack_labels


def largest_negatives(
    similarity: Tensor, labels: Sequence[Tensor], first: int, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest entries that are negative in some label set: keys [B, k], and the sets uint8 [B, k] in which."""
    batch_size, n = similarity.shape
    negative = [~unpack_labels(label, n) for label in labels]
    sets = torch.stack([flags.to(torch.uint8) << j for j, flags in enumerate(negative)]).sum(
        0, dtype=torch.uint8
    )
    columns = first + torch.arange(n, device=similarity.device).expand(batch_size, n)
    keys = keys_of(similarity, columns).masked_fill(sets == 0, NO_KEY)
    found, at = keys.topk(min(k, n), dim=1)
    chosen = sets.gather(1, at)
    room = (0, k - found.shape[1])
    return torch.nn.functional.pad(found, room, value=NO_KEY), torch.nn.functional.pad(chosen, room)


def hard_negative_bars(keys: Tensor, sets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The key of the last hard negative of each sample and set, [b, sets], and whether none is kept back above it."""
    kept_back = (
        keys.amin(2).amax(1) if keys.shape[1] and keys.shape[2] else wanted.new_full((len(keys),), NO_KEY)
    )
    bars, sure = torch.full_like(wanted, HIGHEST_KEY), wanted.new_ones(len(wanted), dtype=torch.bool)
    for k in range(wanted.shape[1]):
        negative = (
            keys.masked_fill((sets >> k & 1) == 0, NO_KEY).flatten(1).sort(dim=1, descending=True).values
        )
        negative = torch.nn.functional.pad(negative, (0, 1), value=NO_KEY)
        place = (wanted[:, k, None] - 1).clamp(0, negative.shape[1] - 1)
        any_wanted, bar = wanted[:, k] > 0, negative.gather(1, place).squeeze(1)
        bars[:, k] = torch.where(any_wanted, bar, HIGHEST_KEY)
        sure &= ~any_wanted | (kept_back <= bar)
    return bars, sure


def own_columns_loss(
    similarity: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    first: int,
    bars: Tensor,
    positive_weights: Tensor,
    hard_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The own part of the loss of each row, float64 [B], and of its gradient [B, d]."""
    n = similarity.shape[1]
    keys = keys_of(similarity, first + torch.arange(n, device=similarity.device).expand_as(similarity))
    s = similarity.double()
    near, far = torch.zeros_like(s), torch.zeros_like(s)
    for k, label in enumerate(labels):
        positive = unpack_labels(label, n)
        near += positive * positive_weights[:, k, None]
        far += (~positive & (keys >= bars[:, k, None])) * hard_weights[:, k, None]
    nothing = (near == 0) & (far == 0)  # whatever s is there
    loss = (near * (s - 1).square() + far * (s + 1).square()).masked_fill(nothing, 0).sum(1)
    slopes = (2 * (near * (s - 1) + far * (s + 1))).masked_fill(nothing, 0)
    return loss, slopes.to(memory.dtype) @ memory
