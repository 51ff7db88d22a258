"""The part of the mutual label loss that falls on the columns that one process owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..memory_size import row_parts
from ..precision import matmul
from ..selection_keys import HIGHEST_KEY, NO_KEY, keys_of
from .label_memory import unpack_labels


def largest_negatives(
    similarity: Tensor, labels: Sequence[Tensor], order: Tensor, first: int, k: int
) -> Tensor:
    """The k largest entries that are negative in some label set, uint8 [B, 9 k] of row ``order[b]``: keys, and the sets
    in which."""
    found = torch.empty(len(similarity), 9 * k, dtype=torch.uint8, device=similarity.device)
    for part in row_parts(*similarity.shape):
        found[part] = _largest_negatives(similarity[part], [label[part] for label in labels], first, k)
    return found[order]


def _largest_negatives(similarity: Tensor, labels: Sequence[Tensor], first: int, k: int) -> Tensor:
    batch_size, n = similarity.shape
    negative = [~unpack_labels(label, n) for label in labels]
    sets = torch.stack([flags.to(torch.uint8) << j for j, flags in enumerate(negative)]).sum(
        0, dtype=torch.uint8
    )
    columns = first + torch.arange(n, device=similarity.device).expand(batch_size, n)
    keys = keys_of(similarity, columns).masked_fill(sets == 0, NO_KEY)
    found, at = keys.topk(min(k, n), dim=1)
    chosen, room = sets.gather(1, at), (0, k - found.shape[1])
    found = torch.nn.functional.pad(found, room, value=NO_KEY).view(torch.uint8).view(batch_size, 8 * k)
    return torch.cat([found, torch.nn.functional.pad(chosen, room)], dim=1)


def hard_negative_bars(found: Tensor, positives: Tensor, n: int, ratio: float) -> Tensor:
    """The key of the last hard negative of each sample and set, and whether none is kept back above it:
    int64 [b, sets + 1]."""
    k = found.shape[2] // 9
    sets = found[:, :, 8 * k :].transpose(0, 1).flatten(1)  # [b, R k]
    told = found[:, :, : 8 * k].contiguous().view(-1).view(torch.int64).view(*found.shape[:2], k)
    keys, wanted = told.transpose(0, 1).flatten(1), _hard_negatives(positives, n, ratio)
    kept_back = told.amin(2).amax(0) if len(found) and k else wanted.new_full((len(wanted),), NO_KEY)
    bars, sure = torch.full_like(wanted, HIGHEST_KEY), torch.ones_like(kept_back, dtype=torch.bool)
    for j in range(wanted.shape[1]):
        negative = keys.masked_fill((sets >> j & 1) == 0, NO_KEY).sort(dim=1, descending=True).values
        negative = torch.nn.functional.pad(negative, (0, 1), value=NO_KEY)
        place = (wanted[:, j, None] - 1).clamp(0, negative.shape[1] - 1)
        any_wanted, bar = wanted[:, j] > 0, negative.gather(1, place).squeeze(1)
        bars[:, j] = torch.where(any_wanted, bar, HIGHEST_KEY)
        sure &= ~any_wanted | (kept_back <= bar)
    return torch.cat([bars, sure[:, None].long()], dim=1)


def _hard_negatives(positives: Tensor, n: int, ratio: float) -> Tensor:
    """How many of the n - positives negatives are hard."""
    negatives = n - positives
    return (ratio * negatives.double()).floor().long().clamp_min(1).minimum(negatives)


def own_columns_loss(
    similarity: Tensor,
    memory: Tensor,
    labels: Sequence[Tensor],
    order: Tensor,
    negatives: Tensor,
    first: int,
    bars: Tensor,
    positives: Tensor,
    weights: Sequence[float],
    delta: float,
    images: int,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """The own part of the loss of each row, float64 [B], and of its gradient [B, d]; finds all that is hard again."""
    number = positives.clamp_min(1).double()
    hard = _hard_negatives(positives, images, ratio).clamp_min(1).double()
    losses = similarity.new_empty(len(similarity), dtype=torch.float64)
    slope = torch.empty_like(similarity, dtype=memory.dtype)
    for part in row_parts(*similarity.shape):
        losses[part], slope[part] = _loss_and_slope(
            similarity[part], [label[part] for label in labels], first, bars[part], number[part], hard[part], weights,
            delta,
        )  # fmt: skip
    return losses, matmul(slope, memory)


def _loss_and_slope(
    similarity: Tensor,
    labels: Sequence[Tensor],
    first: int,
    bars: Tensor,
    number: Tensor,
    hard: Tensor,
    weights: Sequence[float],
    delta: float,
) -> tuple[Tensor, Tensor]:
    """The loss of each row, and its derivative by each entry, in float64."""
    n = similarity.shape[1]
    keys = keys_of(similarity, first + torch.arange(n, device=similarity.device).expand_as(similarity))
    s = similarity.double()
    near, far = torch.zeros_like(s), torch.zeros_like(s)
    is_near, is_far = torch.zeros_like(s, dtype=torch.bool), torch.zeros_like(s, dtype=torch.bool)
    for k, (label, weight) in enumerate(zip(labels, weights, strict=True)):
        positive = unpack_labels(label, n)
        negative = ~positive & (keys >= bars[:, k, None])
        near += positive * (delta * weight / number[:, k, None])
        far += negative * (weight / hard[:, k, None])
        is_near |= positive
        is_far |= negative
    # Where an entry is neither, it adds nothing, whatever s is there.
    up, down = (near * (s - 1)).masked_fill(~is_near, 0), (far * (s + 1)).masked_fill(~is_far, 0)
    loss = (up * (s - 1)).masked_fill(~is_near, 0) + (down * (s + 1)).masked_fill(~is_far, 0)
    return loss.sum(1), 2 * (up + down)
