"""Lists of one of several processes: the compiled form is the plain one, and both are what a whole memory has."""

from __future__ import annotations

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels.ops.operation import OPERATIONS
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import symmetric_lists
from tests.kernels.shard_checks import FIRST, D, N, both_forms, listed, shard, triples


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
    # Every pair above one of its floors is told, with its value. Process 0 decides those of its moved rows with others.
    whole = sk.memory_similarity(after[index], after[FIRST:])
    told = torch.zeros_like(whole, dtype=torch.bool)
    sample = torch.tensor(by_owner).repeat_interleave(numbers[by_owner])
    told[sample, pairs[:, 0].long() - FIRST] = True
    wanted = (whole > lists.floors[index, None] + 1e-5) | (whole > lists.floors[None, FIRST:] + 1e-5)
    elsewhere = torch.tensor([[0], [3]]), index[[1, 2, 4]] - FIRST
    assert not told[elsewhere].any()
    wanted[elsewhere] = False
    assert bool((told | ~wanted).all())
    torch.testing.assert_close(values, whole[sample, pairs[:, 0].long() - FIRST], rtol=0, atol=1e-5)
    # And listed by the own row, but for those that moved, whose lists are to come, and those without room.
    still = torch.tensor([row not in index for row in range(FIRST, N)])
    rows = [{column for column, _ in row} for row in listed(written[1:5])]
    missing = {(r, c) for r, c, _ in triples(left)}
    for s, row in told.nonzero().tolist():
        is_there = int(index[s]) in rows[row]
        assert is_there == (bool(still[row]) and (row, int(index[s])) not in missing)


@pytest.mark.parametrize("forms", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_lists_stay_symmetric_where_a_process_rounds_otherwise(forms):
    memory = clustered_features(N, D)
    index, owner = torch.tensor([3, 70, 64, 20, 159]), torch.tensor([0, 1, 1, 0, 1])
    features = torch.nn.functional.normalize(memory[index] + 0.3 * clustered_features(5, D, seed=3), dim=1)
    after = memory.clone()
    sk.update_memory_(after, index, features, 0.5)
    among = sk.memory_similarity(after[index], after[index])
    lists = symmetric_lists(memory, N, 0.2)
    # Just at the product with 3: it is above the floors only where it is rounded up.
    lists.floors[index[1:]] = among[0, 1:]
    lists.floors[3] = 1
    halves = slice(0, FIRST), slice(FIRST, N)
    parts = torch.stack([
        OPERATIONS["blended_rows"].plain(
            memory[own], own.start, lists.columns[own], lists.floors[own], index, features, torch.tensor(0.5), 3
        )
        for own in halves
    ])  # fmt: skip
    written, blocks = [], []
    for rank, own in enumerate(halves):
        given = parts.clone()
        given[:, :, :D] *= 1 + rank * 1e-6
        (sent, *_), (_, *tables) = both_forms(
            "follow_moved_rows_", memory[own], *(table[own] for table in lists[:4]), own.start,
            sk.memory_similarity(features, memory[own]), given, index, owner, torch.tensor(0.5), 500,
        )[forms[rank]]  # fmt: skip
        written.append(tables[:4])
        blocks.append(sent)
    whole = torch.full((N, N), torch.nan)
    for rank, own in enumerate(halves):
        came, nothing = torch.stack([block[rank] for block in blocks]), blocks[0].new_empty(0, 2)
        row, column, value, told = torch.ops.snnet.moved_pairs(
            came, nothing, index, owner, rank, own.start, N
        )
        assert not told[1]
        torch.ops.snnet.insert_pairs_(*written[rank], row, column, value)
        for r, entries in enumerate(listed(written[rank])):
            for c, v in entries:
                whole[own.start + r, c] = v
    assert torch.equal(whole.nan_to_num(9), whole.nan_to_num(9).t())
    assert bool((whole[index[:, None], index] > 0).any())


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
