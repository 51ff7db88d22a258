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
def test_verdicts_are_those_of_the_whole_rows(capacity):
    memory = clustered_features(N, D)
    lists = symmetric_lists(memory, capacity, None if capacity == N else 0.2)
    similarity = sk.memory_similarity(memory, memory)
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randint(N, (40, 10), generator=generator, dtype=torch.int32)
    candidates[7, 4:] = -1
    anchor = torch.randint(N, (40,), generator=generator, dtype=torch.int32)
    number = torch.randint(2, 30, (40,), generator=generator, dtype=torch.int32)
    number[:2] = torch.tensor([2, N - 1])  # neither is checked
    (compiled, _), (plain, _) = both_forms(
        "listed_verdicts", *shard(lists), FIRST, N, candidates, anchor, number, 5
    )
    assert torch.equal(compiled, plain)
    asked = (candidates >= FIRST) & ((number > 2) & (number < N - 1))[:, None]
    assert torch.equal(compiled == 3, ~asked)
    row = candidates.clamp_min(0).long()
    whole = similarity[row]
    bars = similarity[row, anchor.long()[:, None]]
    inconsistent = (whole > bars[..., None]).sum(2) > number.clamp_min(5)[:, None]
    sure = compiled < 2
    assert torch.equal(compiled[sure], inconsistent[sure].to(torch.int8))
    assert bool(sure.any()) and (capacity < N) == bool((compiled == 2).any())


@pytest.mark.parametrize("capacity", [1, 6, 40, N])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_candidates_and_the_neighbour_are_those_of_the_whole_row(capacity, threshold):
    memory = clustered_features(N, D)
    memory[70:72] = memory[69]  # ties
    memory[80] = 0
    lists = symmetric_lists(memory, capacity, None if capacity == N else 0.2)
    row, places = torch.arange(N - FIRST), capacity + 3
    (compiled, _), (plain, _) = both_forms("listed_candidates", *shard(lists), row, FIRST, threshold, places)
    assert torch.equal(compiled, plain) and compiled.dtype == torch.int32
    counts, neighbor, untold, nothing = compiled[:, :4].unbind(1)
    assert bool((untold == 0).all()) == (capacity == N) and not nothing.any()
    similarity = sk.memory_similarity(memory, memory)[FIRST:]
    ordered = keys_of(similarity, torch.arange(N).expand_as(similarity)).sort(dim=1, descending=True).values
    columns = columns_of(ordered)
    for r in row[untold == 0].tolist():
        above = columns[r][values_of(ordered[r]) > threshold].tolist()
        assert compiled[r, 4:].tolist() == above + [-1] * (places - len(above)) and counts[r] == len(above)
        assert neighbor[r] == columns[r][columns[r] != r + FIRST][0]


def test_a_walk_ends_at_what_is_inconsistent_and_stops_at_what_is_untold():
    candidates = torch.tensor(
        [[5, 6, 7, 8], [1, 9, 2, -1], [3, 4, 5, 6], [8, 2, 1, 0], [4, 4, 4, 4]], dtype=torch.int32
    )
    verdicts = torch.tensor(
        [[0, 0, 1, 0], [1, 0, 0, 0], [0, 2, 1, 0], [3, 0, 3, 0], [2, 0, 0, 0]], dtype=torch.int8
    )
    # One of two processes knows each.
    split = torch.stack([verdicts.where(candidates % 2 == rank, 3) for rank in (0, 1)])
    position, ends = torch.tensor([4, 0, 0, 4, 7]), torch.tensor([20, 3, 9, 8, 7])
    index = torch.tensor([6, 1, 3, 9, 4])
    # Own images are left out; two candidates are positive whatever is said of them; the last sample had ended.
    wanted = [(0, 5), (1, 9), (3, 0), (3, 1), (3, 2), (3, 8)]
    for (*pairs, told), moved in both_forms(
        "walk_candidates_", position, ends, split, candidates, index, True
    ):
        assert triples(pairs) == wanted and told.tolist() == [1, 1]
        assert moved[0].tolist() == [6, 2, 1, 8, 7]  # positions
        assert moved[1].tolist() == [6, 2, 9, 8, 7]  # ends
    for (*pairs, told), moved in both_forms(
        "walk_candidates_", position, ends, split, candidates, index, False
    ):
        assert triples(pairs) == [] and told.tolist() == [4, 1]
        assert moved[0].equal(position) and moved[1].equal(ends)
    resolved = split.where(split != 2, 0)
    for (*pairs, told), moved in both_forms(
        "walk_candidates_", position, ends, resolved, candidates, index, False
    ):
        assert triples(pairs) == sorted([*wanted, (2, 4)]) and told.tolist() == [0, 0]
        assert moved[0].tolist() == moved[1].tolist() == [6, 2, 2, 8, 7]


@pytest.mark.parametrize("ends", [[10], [4, 10], [4, 4, 10]])
def test_samples_are_divided_by_the_owners_of_their_images(ends):
    index = torch.tensor([7, 3, 3, 9, 0])
    owner = [next(rank for rank, end in enumerate(ends) if i < end) for i in index.tolist()]
    order = sorted(range(5), key=lambda b: owner[b])
    counts = [owner.count(rank) for rank in range(len(ends))]
    places = [owner[b] * max(counts) + owner[:b].count(owner[b]) for b in range(5)]
    for given in (index, index[:0]):
        for found, _ in both_forms("divided_samples", given, torch.tensor(ends)):
            wanted = (owner, order, places, counts) if len(given) else ([], [], [], [0] * len(ends))
            assert tuple(part.tolist() for part in found) == wanted


def test_label_sets_of_own_columns():
    first, n = 512, 60
    sample, column = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([512, 3, 571, 520, 521, 900])
    owner, sizes = torch.tensor([1, 0, 1]), torch.tensor([2, 1, 3], dtype=torch.int32)
    entries = torch.tensor([[571, 0, 0, 0, 0, 0], [512, 513, 520, 7, 600, 0]], dtype=torch.int32)
    flags = torch.zeros(3, n, dtype=torch.bool)
    flags[0, 0] = flags[2, 8] = flags[2, 9] = flags[1, 30] = True
    told = torch.tensor([[1, 1, 2], [4, 0, 1]], dtype=torch.int32)
    both = both_forms(
        "own_label_sets", sample, column, owner, sizes, entries, sk.pack_labels(flags), told, first, n
    )
    for (main, symmetric, positives, common), _ in both:
        assert sk.unpack_labels(main, n).nonzero().tolist() == [[0, 0], [1, 59], [2, 8], [2, 9]]
        assert sk.unpack_labels(symmetric, n).nonzero().tolist() == [[0, 0], [0, 1], [1, 59], [2, 8]]
        assert positives.tolist() == [[2, 2, 5], [1, 1, 1], [3, 3, 3]]
        assert common.tolist() == [[1, 1], [1, 0], [1, 2]]


@pytest.mark.parametrize("momentum", [0.0, 0.4, 1.0])
def test_rows_are_blended_as_in_one_process(momentum):
    memory, features = clustered_features(N, D), clustered_features(6, D, seed=1)
    features[2] = torch.nan
    lists = symmetric_lists(memory, 6, 0.2)
    index, own = torch.tensor([70, 64, 100, 3, 159, 80]), [0, 1, 2, 4, 5]
    (compiled, _), (plain, _) = both_forms(
        "blended_rows", memory[FIRST:], FIRST, lists.columns[FIRST:], lists.floors[FIRST:], index, features,
        torch.tensor(momentum), 7,
    )  # fmt: skip
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0, equal_nan=True)
    assert not compiled[5:].any() and compiled.shape == (7, D + 2 + 6)
    lengths, floors, columns = compiled[:5, D], compiled[:5, D + 1], compiled[:5, D + 2 :].clone()
    assert torch.equal(floors, lists.floors[index[own]])
    assert torch.equal(columns.view(torch.int32), lists.columns[index[own]])
    if momentum < 1:
        assert lengths.isnan().tolist() == [False, False, True, False, False]
    sk.update_memory_(memory, index, features, momentum)
    assert torch.equal(memory[index[own]], compiled[:5, :D])


@pytest.mark.parametrize("capacity", [6, 24, N])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("room", [0, 2, 500])
def test_lists_follow_rows_that_have_moved(capacity, momentum, room):
    memory = clustered_features(N, D)
    lists = symmetric_lists(memory, capacity, None if capacity == N else 0.2)
    index, owner = torch.tensor([3, 70, 64, 20, 159]), torch.tensor([0, 1, 1, 0, 1])
    features = torch.nn.functional.normalize(memory[index] + 0.3 * clustered_features(5, D, seed=3), dim=1)
    similarity = sk.memory_similarity(features, memory[FIRST:])
    alpha = torch.tensor(momentum)
    parts = [
        OPERATIONS["blended_rows"].plain(
            memory[own], own.start, lists.columns[own], lists.floors[own], index, features, alpha, 3
        )
        for own in (slice(0, FIRST), slice(FIRST, N))
    ]
    after = memory.clone()
    sk.update_memory_(after, index, features, momentum)
    (compiled, written), (plain, plainly_written) = both_forms(
        "follow_moved_rows_", memory[FIRST:], *shard(lists), FIRST, similarity, torch.stack(parts), index, owner,
        alpha, room,
    )  # fmt: skip
    for rows in (written, plainly_written):
        assert torch.equal(rows[0], after[FIRST:])
    blocks, pairs, *left = compiled
    numbers = blocks[0, :5]
    assert torch.equal(blocks[:, :6], plain[0][:, :6]) and blocks.shape == (2, 6 + 2 * room)
    assert bool(blocks[0, 5]) == bool(len(left[0])) and blocks[0, :6].equal(blocks[1, :6])
    by_owner = [0, 3, 1, 2, 4]
    for found, block in ((pairs, blocks), (plain[1], plain[0])):  # by owner, then by moved row
        sent = found.split([int(numbers[[0, 3]].sum()), int(numbers[[1, 2, 4]].sum())])
        for part, own in zip(sent, block, strict=True):
            told = own[6:].view(room, 2)[: len(part)]
            assert torch.equal(told, part[:room]) and not own[6:].view(room, 2)[len(part) :].any()
    row_of = index[by_owner].repeat_interleave(numbers[by_owner])
    assert sorted(zip(row_of.tolist(), pairs[:, 0].tolist(), strict=True)) == sorted(
        zip(row_of.tolist(), plain[1][:, 0].tolist(), strict=True)
    )
    values = pairs[:, 1].contiguous().view(torch.float32)
    torch.testing.assert_close(
        values.sort().values, plain[1][:, 1].contiguous().view(torch.float32).sort().values
    )
    assert [{column for column, _ in row} for row in listed(written[1:5])] == [
        {column for column, _ in row} for row in listed(plainly_written[1:5])
    ]
    assert [row[:2] for row in triples(left)] == [row[:2] for row in triples(plain[2:])]
    # Every pair above one of its floors is told, with its value.
    whole = sk.memory_similarity(after[index], after[FIRST:])
    told = torch.zeros_like(whole, dtype=torch.bool)
    sample = torch.tensor(by_owner).repeat_interleave(numbers[by_owner])
    told[sample, pairs[:, 0].long() - FIRST] = True
    wanted = (whole > lists.floors[index, None] + 1e-5) | (whole > lists.floors[None, FIRST:] + 1e-5)
    assert bool((told | ~wanted).all())
    torch.testing.assert_close(values, whole[sample, pairs[:, 0].long() - FIRST], rtol=0, atol=1e-5)
    # And listed by the own row, but for those that moved, whose lists are to come, and those without room.
    still = torch.tensor([row not in index for row in range(FIRST, N)])
    rows = [{column for column, _ in row} for row in listed(written[1:5])]
    missing = {(r, c) for r, c, _ in triples(left)}
    for s, row in told.nonzero().tolist():
        is_there = int(index[s]) in rows[row]
        assert is_there == (bool(still[row]) and (row, int(index[s])) not in missing)


def test_moved_pairs_come_in_blocks_and_behind_them():
    index, owner = torch.tensor([600, 20, 530]), torch.tensor([1, 0, 1])
    value = torch.tensor([0.5, 0.25, 0.75, 0.125]).view(torch.int32).tolist()
    blocks = torch.tensor([
        [1, 5, 0, 0, 9, value[0], 0, 0],  # of the rows 600 and 530 one pair, which is column 9
        [2, 0, 1, 0, 7, value[1], 8, value[2]],  # three, of which two fit
    ], dtype=torch.int32)  # fmt: skip
    rest, none = torch.tensor([[6, value[3]]], dtype=torch.int32), torch.empty(0, 2, dtype=torch.int32)
    wanted = ([600 - 512, 600 - 512, 600 - 512, 530 - 512], [9, 7, 8, 6], [0.5, 0.25, 0.75, 0.125])
    for given, pairs in ((rest, wanted), (none, ([], [], []))):
        for (row, column, similarity, told), _ in both_forms(
            "moved_pairs", blocks, given, index, owner, 1, 512, 4
        ):
            assert (row.tolist(), column.tolist(), similarity.tolist()) == pairs
            assert told.tolist() == [5, 1]  # rank 0 has as many for itself, more than the capacity
    # Nothing is behind the blocks for this process, though there is for another: all is there.
    fits = blocks.clone()
    fits[1, 0] = 1
    for (row, _, _, told), _ in both_forms("moved_pairs", fits, none, index, owner, 1, 512, 5):
        assert row.tolist() == [88, 88, 18] and told.tolist() == [5, 0]
    fits[0, 3] = 1  # a process has pairs without room
    for (*_, told), _ in both_forms("moved_pairs", fits, none, index, owner, 1, 512, 5):
        assert told.tolist() == [5, 1]


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


def unpacked(negatives: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and the sets of what largest_negatives gives."""
    k = negatives.shape[-1] // 9
    return negatives[..., : 8 * k].clone().view(torch.int64), negatives[..., 8 * k :]


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 9, 70])
def test_largest_negatives_are_the_first_of_a_sort(sets, k):
    generator = torch.Generator().manual_seed(sets)
    similarity = (torch.randn(7, 60, generator=generator) * 4).round() / 4
    similarity[0, :5], similarity[1, 3] = torch.nan, -0.0
    positive = torch.rand(sets, 7, 60, generator=generator) < 0.3
    positive[:, 3] = True
    labels = [sk.pack_labels(part) for part in positive]
    rows = torch.tensor([2, 0, 1, 6, 5, 3, 4])
    (compiled, _), (plain, _) = both_forms("largest_negatives", similarity, labels, rows, 512, k)
    columns = torch.arange(512, 572).expand(7, -1)
    wanted = keys_of(similarity, columns).masked_fill(positive.all(0), NO_KEY)
    wanted = torch.nn.functional.pad(wanted, (0, 20), value=NO_KEY).sort(dim=1, descending=True).values[:, :k]
    bits = sum((~part).to(torch.uint8) << place for place, part in enumerate(positive))
    for keys, found in (unpacked(compiled), unpacked(plain)):
        ordered, order = keys.sort(dim=1, descending=True, stable=True)
        assert torch.equal(ordered, wanted[rows])
        there = ordered > NO_KEY
        at = (columns_of(ordered) - 512).clamp(0, 59)
        assert torch.equal(found.gather(1, order)[there], bits[rows].gather(1, at)[there])
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
    # Of 50 columns half of the negatives are hard, one at least.
    positives = torch.tensor(
        [
            [48, 46, 44],
            [48, 50, 46],
            [42, 49, 30 - 18 * (ranks - 1) // 2],
            [50, 50, 50],
            [46, 32, 48],
            [47, 48, 49],
        ]
    )
    wanted = ((50 - positives) // 2).clamp_min(1).minimum(50 - positives)
    packed = torch.cat([keys.transpose(0, 1).contiguous().view(torch.uint8), sets.transpose(0, 1)], dim=2)
    (compiled, _), (plain, _) = both_forms("hard_negative_bars", packed, positives, 50, 0.5)
    assert torch.equal(compiled, plain)
    bars, sure = compiled[:, :3], compiled[:, 3]
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
    positives, rows = torch.zeros(3, 1, dtype=torch.int64), torch.arange(3)
    negatives = OPERATIONS["largest_negatives"].plain(similarity, labels, rows, FIRST, 5)
    for bar in (keys[:, 3:4].contiguous(), keys[:, :1].contiguous()):
        for (losses, _), _ in both_forms(
            "own_columns_loss", similarity, memory[FIRST:], labels, rows, negatives, FIRST, bar, positives, [1.0],
            1.0, N, 0.02,
        ):  # fmt: skip
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
    positives = positive.sum(2).t().contiguous()
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
    total, gradient, rows = (
        torch.zeros((), dtype=torch.float64),
        torch.zeros(6, D),
        torch.tensor([3, 1, 0, 2, 5, 4]),
    )
    for own in (slice(0, FIRST), slice(FIRST, N)):
        labels = [sk.pack_labels(part[:, own]) for part in positive]
        mine = similarity[:, own].contiguous()
        negatives = OPERATIONS["largest_negatives"].plain(mine, labels, rows, own.start, 40)
        (compiled, _), (plain, _) = both_forms(
            "own_columns_loss", mine, memory[own], labels, rows, negatives, own.start, bars, positives,
            [share / 6 for share in shares.tolist()], 5.0, N, 0.1,
        )  # fmt: skip
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)
        total, gradient = total + compiled[0].sum(), gradient + compiled[1]
    live = features.clone().requires_grad_()
    loss = sk.fused_mutual_label_loss(
        live, memory, [sk.pack_labels(part) for part in positive], weights, hard_negative_ratio=0.1
    )
    loss.backward()
    torch.testing.assert_close(total.float(), loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, live.grad, rtol=1e-5, atol=1e-6)
