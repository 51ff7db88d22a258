"""Labels from lists that are divided over processes: see :mod:`snnet_kernels.ops.shard_prediction`.

Rows are counted from the first own one, columns from the first image of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import bits_at, packed_entries
from ..neighbor_list_layout import NeighborLists
from ..selection_keys import NO_KEY, columns_of, keys_of, values_of
from .list_labels import _ranks_behind

CONSISTENT, INCONSISTENT, UNTOLD, ELSEWHERE = 0, 1, 2, 3


def divided_samples(index: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The process of each sample, the samples by process, their places in blocks of the most, and how many each has."""
    owner = torch.searchsorted(ends, index.contiguous(), right=True)
    by_owner, order = owner.sort(stable=True)
    counts = torch.bincount(owner, minlength=len(ends))
    ahead = counts.amax() * torch.arange(len(ends), device=ends.device) - (counts.cumsum(0) - counts)
    places = torch.arange(len(index), device=index.device) + ahead[by_owner]
    return owner, order, torch.empty_like(places).scatter_(0, order, places), counts


def listed_candidates(lists: NeighborLists, row: Tensor, first: int, threshold: float, places: int) -> Tensor:
    """How many candidates, the nearest other image, what the list does not tell, 0, and the candidates in order."""
    listed, values, floors = lists.columns[row].long(), lists.values[row], lists.floors[row]
    keys = keys_of(values, listed).masked_fill(listed < 0, NO_KEY)
    bar = torch.tensor(threshold, dtype=torch.float32, device=floors.device)
    above = keys.masked_fill(~(values > bar), NO_KEY).sort(dim=1, descending=True).values
    candidates = columns_of(above).masked_fill(above == NO_KEY, -1)
    nearest = keys.masked_fill(listed == (row + first)[:, None], NO_KEY).amax(1)
    largest = values_of(nearest).masked_fill(nearest == NO_KEY, -torch.inf)
    neighbor = columns_of(nearest).masked_fill(largest == -torch.inf, -1)
    untold = (floors > bar).long() + 2 * (~((largest > floors) | (floors == -torch.inf))).long()
    head = torch.stack([(above > NO_KEY).sum(1), neighbor, untold, torch.zeros_like(row)], dim=1)
    wide = torch.nn.functional.pad(candidates, (0, places - candidates.shape[1]), value=-1)
    return torch.cat([head, wide], dim=1).to(torch.int32)


def listed_verdicts(
    lists: NeighborLists,
    first: int,
    images: int,
    candidates: Tensor,
    anchor: Tensor,
    number: Tensor,
    min_rank: int,
) -> Tensor:
    """Whether candidates that stand in own rows are inconsistent, UNTOLD where unknown, ELSEWHERE for all others."""
    rank = number.long().clamp_min(min_rank)
    local = candidates.long() - first
    own = (candidates >= 0) & (local >= 0) & (local < len(lists.columns))
    sample, place = (own & ((number > 2) & (rank < images - 1))[:, None]).nonzero().unbind(1)
    behind, untold = _ranks_behind(lists, local[sample, place], anchor[sample].long(), rank[sample])
    verdicts = torch.full(candidates.shape, ELSEWHERE, dtype=torch.int8, device=candidates.device)
    verdicts[sample, place] = torch.where(untold, UNTOLD, behind.to(torch.int8)).to(torch.int8)
    return verdicts


def walk_candidates_(
    position: Tensor, ends: Tensor, verdicts: Tensor, candidates: Tensor, index: Tensor, stops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Go on up to an end, or to the first candidate that is inconsistent or untold: positives (sample, column), and how
    many samples have not ended, and have met an untold one."""
    pending, width, found = position < ends, candidates.shape[1], verdicts.amin(0)
    found = torch.nn.functional.pad(found, (0, 1), value=ELSEWHERE)
    place = torch.nn.functional.pad(
        (found[:, :-1] == INCONSISTENT) | (found[:, :-1] == UNTOLD), (0, 1), value=True
    )
    place = place.to(torch.uint8).argmax(1)
    stop = found.gather(1, place[:, None]).squeeze(1)
    untold = (pending & (stop == UNTOLD)).sum()
    if not stops:
        pending = pending & (untold == 0)
    ended = stop == INCONSISTENT
    after = position + place
    after = torch.where(ended, after.clamp_min(2), after).minimum(ends)
    ahead = position[:, None] + torch.arange(width, device=position.device)
    positive = (candidates >= 0) & (ahead < after[:, None]) & (candidates != index[:, None])
    sample, at = (positive & pending[:, None]).nonzero().unbind(1)
    ends.copy_(torch.where(pending & ended, after, ends))
    position.copy_(torch.where(pending, after, position))
    return sample, candidates[sample, at].long(), torch.stack([(position < ends).sum(), untold])


def own_label_sets(
    sample: Tensor,
    column: Tensor,
    owner: Tensor,
    sizes: Tensor,
    entries: Tensor,
    neighbors: Tensor,
    told: Tensor,
    first: int,
    n: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Main and symmetric labels in the own columns, positives of the three sets, and what two have in common."""
    batch, sizes = len(owner), sizes.long()
    by_owner = owner.sort(stable=True).indices
    place = by_owner.repeat_interleave(sizes[by_owner])  # as entries come, process by process
    totals = torch.zeros(len(entries), dtype=torch.int64, device=sizes.device).index_add_(0, owner, sizes)
    row = entries[torch.arange(entries.shape[1], device=sizes.device) < totals[:, None]]
    packed, pairs = [], []
    for samples, columns in ((sample, column), (place, row.long())):
        own = (columns >= first) & (columns < first + n)
        pairs.append((samples[own], columns[own] - first))
        packed.append(packed_entries(*pairs[-1], batch, n))
    main = pairs[0]
    common = [
        torch.bincount(main[0][bits_at(other, *main)], minlength=batch) for other in (packed[1], neighbors)
    ]
    positives = torch.stack([torch.bincount(sample, minlength=batch), sizes, told.long().sum(0)], dim=1)
    return packed[0], packed[1], positives, torch.stack(common, dim=1).to(torch.int32)
