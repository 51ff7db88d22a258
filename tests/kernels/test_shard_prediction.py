"""Labels of one of several processes: the compiled form is the plain one, and both are what a whole memory has."""

from __future__ import annotations

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels.distributed import prediction
from snnet_kernels.distributed.exchange import Exchange
from snnet_kernels.distributed.rows import Division, Samples
from snnet_kernels.layout import packed_entries
from snnet_kernels.selection_keys import columns_of, keys_of, values_of
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import symmetric_lists
from tests.kernels.shard_checks import FIRST, D, N, both_forms, shard, triples


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
    assert torch.equal(untold % 2 == 1, lists.floors[FIRST:] > threshold)
    assert bool((untold == 0).all()) == (capacity == N) and not nothing.any()
    similarity = sk.memory_similarity(memory, memory)[FIRST:]
    ordered = keys_of(similarity, torch.arange(N).expand_as(similarity)).sort(dim=1, descending=True).values
    columns = columns_of(ordered)
    for r in row[untold % 2 == 0].tolist():
        above = columns[r][values_of(ordered[r]) > threshold].tolist()
        assert compiled[r, 4:].tolist() == above + [-1] * (places - len(above)) and counts[r] == len(above)
    for r in row[untold < 2].tolist():
        assert neighbor[r] == columns[r][columns[r] != r + FIRST][0]


@pytest.mark.parametrize(("threshold", "missing"), [(0.0, {1, 3}), (0.5, {0, 2})])
@pytest.mark.parametrize("step", [1, 2**22])
def test_what_a_list_tells_counts_beside_what_it_does_not(
    one_process_group, monkeypatch, threshold, missing, step
):
    monkeypatch.setattr(prediction, "WHOLE_ROWS_AT_ONCE", step)
    memory, index = clustered_features(N, D), torch.arange(0, N, 3)
    lists = symmetric_lists(memory, 6, 0.2)
    # Lists and products differ, by far more than rounding: the two nearest others have changed places, and row 3 lists
    # none above its floor.
    others = lists.values.masked_fill(lists.columns == torch.arange(N)[:, None], -torch.inf)
    two = others.topk(2, dim=1).indices
    lists.values.scatter_(1, two, lists.values.gather(1, two.flip(1)))
    lists.values[3, lists.columns[3] != 3] = 0.1
    lists.floors[3] = 0.2
    division = Division(N, 1, 0)
    own = prediction.OwnRows(memory, lists, Exchange(torch.distributed.group.WORLD), division)
    found = own.predict(Samples(index, division), threshold, 4, None, stale=False, look=lambda _: None)
    labels, _ = torch.ops.snnet.mplp_from_lists(memory, index, *lists[:4], None, threshold, 4)
    neighbors, _, _ = torch.ops.snnet.nearest_from_lists(memory, index, *lists[:4], 1)
    assert torch.equal(packed_entries(found.sample, found.column, len(index), N), labels)
    assert torch.equal(found.neighbor, neighbors.flatten())
    untold = torch.ops.snnet.listed_candidates(*lists[:4], index, 0, threshold, 6)[:, 2]
    assert missing <= set(untold.tolist())


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


@pytest.mark.parametrize("share", [1, 7, 30])
@pytest.mark.parametrize("step", [1, 2**22])
def test_entries_that_travel_tell_candidates_and_neighbour(monkeypatch, share, step):
    monkeypatch.setattr(prediction, "WHOLE_ROWS_AT_ONCE", step)
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(3)).mul(2).round()
    rows[10:, 4], rows[20:, 9:12], rows[30:, 20:], rows[33:, 2] = torch.nan, torch.inf, -torch.inf, -0.0
    rows[36:] = -torch.inf
    rows[38:, 5] = torch.nan
    own = torch.arange(40) % 30
    own[39] = 5
    all_keys = keys_of(rows, torch.arange(30).expand_as(rows)).sort(dim=1, descending=True).values
    for threshold in (-0.5, 0.0, 1.5, 9.0):
        wanted = prediction._row_candidates(own, all_keys, threshold, 4)
        keys, row = [], []
        for first in range(0, 30, share):
            found, counts = prediction._telling_keys(rows[:, first : first + share], own, threshold, first)
            keys.append(found)
            row.append(torch.arange(40).repeat_interleave(counts))
        table = prediction._in_rows(torch.cat(keys), torch.cat(row), 40)
        made = prediction._row_candidates(own, table, threshold, 4)
        assert torch.equal(made, wanted[:, : made.shape[1]])
        assert (wanted[:, made.shape[1] :] == -1).all()


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
