"""Operations of one of several processes: the compiled form is the plain one, and both are what a whole memory has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.ops.operation import OPERATIONS
from snnet_kernels.selection_keys import NO_KEY, columns_of, keys_of, values_of
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import symmetric_lists

N, D, FIRST = 160, 12, 64


def shard(lists: NeighborLists) -> list[Tensor]:
    return [table[FIRST:].clone() for table in lists[:4]]


def both_forms(name: str, *arguments: object) -> list[tuple[object, list[Tensor]]]:
    """What the compiled form and the plain one return, and what the tensors given are afterwards."""
    found = []
    for call in (getattr(torch.ops.snnet, name), OPERATIONS[name].plain):
        own = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
        result = call(*own)
        found.append((result, [value for value in own if isinstance(value, Tensor)]))
    return found


def listed(tables: list[Tensor]) -> list[set[tuple[int, float]]]:
    columns, values, counts, _ = tables
    return [
        set(zip(columns[row, :count].tolist(), values[row, :count].tolist(), strict=True))
        for row, count in enumerate(counts.tolist())
    ]


def triples(pairs: tuple[Tensor, ...]) -> list[tuple]:
    return sorted(zip(*(part.tolist() for part in pairs), strict=True))


@pytest.mark.parametrize("capacity", [6, 40, N])
def test_ranks_are_those_of_the_whole_row(capacity):
    memory = clustered_features(N, D)
    lists, similarity = (
        symmetric_lists(memory, capacity, None if capacity == N else 0.2),
        sk.memory_similarity(memory, memory),
    )
    generator = torch.Generator().manual_seed(1)
    row, anchor = (
        torch.randint(N - FIRST, (400,), generator=generator),
        torch.randint(N, (400,), generator=generator),
    )
    rank = torch.randint(30, (400,), generator=generator)
    (compiled, _), (plain, _) = both_forms("listed_ranks", *shard(lists), row, anchor, rank)
    assert torch.equal(compiled, plain)
    whole = similarity[row + FIRST]
    above = (whole > whole.gather(1, anchor[:, None])).sum(1)
    assert torch.equal(compiled[compiled < 2], (above > rank).to(torch.int8)[compiled < 2])
    assert bool((compiled < 2).any()) and (capacity < N) == bool((compiled == 2).any())


@pytest.mark.parametrize("capacity", [1, 6, 40, N])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_candidates_and_the_neighbour_are_those_of_the_whole_row(capacity, threshold):
    memory = clustered_features(N, D)
    memory[70:72] = memory[69]  # ties
    memory[80] = 0
    lists = symmetric_lists(memory, capacity, None if capacity == N else 0.2)
    row = torch.arange(N - FIRST)
    (compiled, _), (plain, _) = both_forms("listed_candidates", *shard(lists), row, FIRST, threshold)
    for found, wanted in zip(compiled, plain, strict=True):
        assert torch.equal(found, wanted)
    candidates, counts, neighbor, told = compiled
    assert bool(told.all()) == (capacity == N)
    similarity = sk.memory_similarity(memory, memory)[FIRST:]
    ordered = keys_of(similarity, torch.arange(N).expand_as(similarity)).sort(dim=1, descending=True).values
    columns = columns_of(ordered)
    for r in row[told].tolist():
        above = columns[r][values_of(ordered[r]) > threshold].tolist()
        assert candidates[r].tolist() == above + [-1] * (capacity - len(above)) and counts[r] == len(above)
        assert neighbor[r] == columns[r][columns[r] != r + FIRST][0]


@pytest.mark.parametrize("momentum", [0.0, 0.4, 1.0])
def test_rows_are_blended_as_in_one_process(momentum):
    memory, features = clustered_features(N, D), clustered_features(5, D, seed=1)
    features[2] = torch.nan
    index = torch.tensor([70, 64, 100, 159, 80])
    (lengths, (blended, *_)), (plain_lengths, (plain, *_)) = both_forms(
        "blend_rows_", memory[FIRST:], index - FIRST, features, torch.tensor(momentum)
    )
    torch.testing.assert_close(lengths, plain_lengths, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(blended, plain)
    if momentum < 1:
        assert lengths.isnan().tolist() == [False, False, True, False, False]
    sk.update_memory_(memory, index, features, momentum)
    assert torch.equal(memory[FIRST:], blended)


@pytest.mark.parametrize("capacity", [6, 24, N])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_lists_follow_rows_that_have_moved(capacity, momentum):
    memory = clustered_features(N, D)
    lists = symmetric_lists(memory, capacity, None if capacity == N else 0.2)
    index = torch.tensor([3, 70, 64, 20, 159])
    features = torch.nn.functional.normalize(memory[index] + 0.3 * clustered_features(5, D, seed=3), dim=1)
    similarity = sk.memory_similarity(features, memory[FIRST:])
    alpha = torch.tensor(momentum)
    after = memory.clone()
    lengths = OPERATIONS["blend_rows_"].plain(after, index, features, alpha)
    (compiled, written), (plain, plainly_written) = both_forms(
        "follow_moved_rows_", after[FIRST:], FIRST, *shard(lists), similarity, after[index], index,
        lists.floors[index], lengths, lists.columns[index], alpha,
    )  # fmt: skip
    assert [row[:2] + row[3:] for row in triples(compiled)] == [row[:2] + row[3:] for row in triples(plain)]
    torch.testing.assert_close(compiled[2].sort().values, plain[2].sort().values)
    assert [{column for column, _ in row} for row in listed(written[1:5])] == [
        {column for column, _ in row} for row in listed(plainly_written[1:5])
    ]
    # Every pair above one of its floors is told, with its value.
    sample, column, value, fresh = compiled
    whole = sk.memory_similarity(after[index], after[FIRST:])
    told = torch.zeros_like(whole, dtype=torch.bool)
    told[sample, column - FIRST] = True
    wanted = (whole > lists.floors[index, None] + 1e-5) | (whole > lists.floors[None, FIRST:] + 1e-5)
    assert bool((told | ~wanted).all())
    torch.testing.assert_close(value, whole[sample, column - FIRST], rtol=0, atol=1e-5)
    assert not bool(fresh.all())


@pytest.mark.parametrize("capacity", [6, 24, N])
def test_pairs_find_room_or_come_back(capacity):
    memory = clustered_features(N, D)
    lists = symmetric_lists(memory, capacity, 0.6)
    generator = torch.Generator().manual_seed(2)
    row, column = torch.cartesian_prod(torch.arange(N - FIRST), torch.arange(N)).unbind(1)
    new = torch.ones(N - FIRST, N, dtype=torch.bool)
    at, place = (lists.columns[FIRST:] >= 0).nonzero().unbind(1)
    new[at, lists.columns[FIRST:][at, place].long()] = False
    chosen = new[row, column] & (torch.rand(len(row), generator=generator) < 0.1)
    row, column = row[chosen], column[chosen]
    value = (torch.rand(len(row), generator=generator) * 8).round() / 8  # with ties
    (cut, written), (plain_cut, plainly_written) = both_forms(
        "insert_pairs_", *shard(lists), row, column, value
    )
    assert triples(cut) == triples(plain_cut) and listed(written[:4]) == listed(plainly_written[:4])
    assert bool(len(cut[0])) == (capacity < N)
    before = {(r, *entry) for r, entries in enumerate(listed(shard(lists))) for entry in entries}
    after = {(r, *entry) for r, entries in enumerate(listed(written[:4])) for entry in entries}
    assert after | set(triples(cut)) == before | set(triples((row, column, value)))
    for r, c, v in triples(cut):  # what came back is behind everything that stayed
        assert all((-value, column) < (-v, c) for column, value in listed(written[:4])[r])
    (_, removed), (_, plainly_removed) = both_forms("remove_pairs_", *written[:4], *cut)
    assert listed(removed[:4]) == listed(plainly_removed[:4]) and torch.equal(removed[3], plainly_removed[3])
    floors = lists.floors[FIRST:].clone()
    if len(cut[0]):
        floors.scatter_reduce_(0, cut[0], cut[2], "amax")
    assert torch.equal(removed[3], floors)


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 9, 70])
def test_largest_negatives_are_the_first_of_a_sort(sets, k):
    generator = torch.Generator().manual_seed(sets)
    similarity = (torch.randn(7, 60, generator=generator) * 4).round() / 4
    similarity[0, :5], similarity[1, 3] = torch.nan, -0.0
    positive = torch.rand(sets, 7, 60, generator=generator) < 0.3
    positive[:, 3] = True
    labels = [sk.pack_labels(part) for part in positive]
    (compiled, _), (plain, _) = both_forms("largest_negatives", similarity, labels, 512, k)
    columns = torch.arange(512, 572).expand(7, -1)
    wanted = keys_of(similarity, columns).masked_fill(positive.all(0), NO_KEY)
    wanted = torch.nn.functional.pad(wanted, (0, 20), value=NO_KEY).sort(dim=1, descending=True).values[:, :k]
    bits = sum((~part).to(torch.uint8) << place for place, part in enumerate(positive))
    for keys, found in (compiled, plain):
        ordered, order = keys.sort(dim=1, descending=True, stable=True)
        assert torch.equal(ordered, wanted)
        there = ordered > NO_KEY
        at = (columns_of(ordered) - 512).clamp(0, 59)
        assert torch.equal(found.gather(1, order)[there], bits.gather(1, at)[there])
        assert not found.gather(1, order)[~there].any()


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_last_hard_negative_is_that_of_all_processes(ranks):
    generator = torch.Generator().manual_seed(ranks)
    keys = torch.stack([torch.randperm(400, generator=generator)[: ranks * 9] for _ in range(6)]).view(
        6, ranks, 9
    )
    sets = torch.randint(8, (6, ranks, 9), generator=generator, dtype=torch.uint8)
    keys[1], sets[1] = NO_KEY, 0
    keys[2, :, 4:], sets[2, :, 4:] = NO_KEY, 0
    wanted = torch.tensor([[1, 2, 3], [1, 0, 2], [4, 1, 9 * ranks + 1], [0, 0, 0], [2, 9, 1], [1, 1, 1]])
    (compiled, _), (plain, _) = both_forms("hard_negative_bars", keys, sets, wanted)
    for found, other in zip(compiled, plain, strict=True):
        assert torch.equal(found, other)
    bars, sure = compiled
    for b in range(6):
        flat, bits = keys[b].flatten(), sets[b].flatten()
        kept_back = keys[b].amin(1).max()
        is_sure = True
        for k in range(3):
            negative = flat[(bits >> k & 1).bool()].sort(descending=True).values
            needed = int(wanted[b, k])
            if needed == 0:
                assert bars[b, k] == 2**63 - 1
                continue
            assert bars[b, k] == (negative[needed - 1] if needed <= len(negative) else NO_KEY)
            is_sure &= bool(kept_back <= bars[b, k])
        assert sure[b] == is_sure
    assert sure[1] and sure[3]


def test_a_product_that_is_nan_is_a_hard_negative():
    memory, features = clustered_features(N, D), clustered_features(3, D, seed=1)
    memory[FIRST + 5] = torch.nan
    similarity = sk.memory_similarity(features, memory[FIRST:])
    labels = [sk.pack_labels(torch.zeros(3, N - FIRST, dtype=torch.bool))]
    keys = (
        keys_of(similarity, torch.arange(FIRST, N).expand_as(similarity)).sort(dim=1, descending=True).values
    )
    bars, ones = keys[:, 3:4].contiguous(), torch.ones(3, 1, dtype=torch.float64)
    for bar in (bars, keys[:, :1].contiguous()):
        for (losses, _), _ in both_forms(
            "own_columns_loss", similarity, memory[FIRST:], labels, FIRST, bar, ones, ones
        ):
            assert losses.isnan().all()


def test_keys_tell_their_values():
    values = torch.tensor([torch.inf, 1.5, 0.0, -0.25, -3.0, -torch.inf])
    keys = keys_of(values, torch.tensor([5, 4, 3, 2, 1, 0]))
    assert torch.equal(values_of(keys), values) and columns_of(keys).tolist() == [5, 4, 3, 2, 1, 0]
    assert torch.equal(keys.sort(descending=True).values, keys)
    assert values_of(keys_of(torch.tensor([torch.nan]), torch.tensor([0]))).isnan()


@pytest.mark.parametrize("sets", [1, 3])
def test_the_loss_of_own_columns_is_a_part_of_the_whole(sets):
    generator = torch.Generator().manual_seed(sets)
    memory, features = clustered_features(N, D), clustered_features(6, D, seed=1)
    similarity = sk.memory_similarity(features, memory)
    positive = torch.rand(sets, 6, N, generator=generator) < 0.1
    weights = [1.0, 0.8, 0.6][:sets]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    positives = positive.sum(2).t()
    hard = (0.1 * (N - positives).double()).floor().long().clamp_min(1)
    keys = keys_of(similarity, torch.arange(N).expand_as(similarity))
    bars = torch.stack(
        [
            keys.masked_fill(part, NO_KEY)
            .sort(dim=1, descending=True)
            .values.gather(1, hard[:, k, None] - 1)[:, 0]
            for k, part in enumerate(positive)
        ],
        dim=1,
    )
    options = bars, (5.0 * shares / 6 / positives.clamp_min(1)).contiguous(), (shares / 6 / hard).contiguous()
    total, gradient = torch.zeros((), dtype=torch.float64), torch.zeros(6, D)
    for own in (slice(0, FIRST), slice(FIRST, N)):
        labels = [sk.pack_labels(part[:, own]) for part in positive]
        (compiled, _), (plain, _) = both_forms(
            "own_columns_loss", similarity[:, own].contiguous(), memory[own], labels, own.start, *options
        )
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)
        total, gradient = total + compiled[0].sum(), gradient + compiled[1]
    live = features.clone().requires_grad_()
    loss = sk.fused_mutual_label_loss(
        live, memory, [sk.pack_labels(part) for part in positive], weights, hard_negative_ratio=0.1
    )
    loss.backward()
    torch.testing.assert_close(total.float(), loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, live.grad, rtol=1e-5, atol=1e-6)
