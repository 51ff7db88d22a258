"""Neighbour lists: complete above their floors, and labels read from them."""

import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snnet_kernels as sk
from snnet_kernels import neighbor_list_layout, ops, reference
from snnet_kernels.neighbor_list_layout import NeighborLists, are_symmetric, with_mirrors
from snnet_kernels.reference.list_labels import mplp_from_lists, nearest_from_lists
from snnet_kernels.reference.memory_update import update_memory_lists_
from snnet_kernels.reference.neighbor_lists import neighbor_lists, symmetric_lists
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import (
    batch_of,
    exact_memory_of,
    exact_rows,
    memory_of,
    moving_batch,
    needs_cpu_library,
    rearranged,
    sizes,
    unit_rows,
)
from tests.kernels.list_checks import (
    KINDS,
    check_labels,
    check_lists,
    check_neighbors,
    dense,
    same_lists,
    tables_of,
    update_,
    without_mirrors,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (33, 33), (40, 9), (1100, 20)])
def test_the_largest_of_each_row_are_listed(kind, n, k):
    features = memory_of(kind, n, 8, seed=n)
    similarity = features @ features.t()
    lists = neighbor_lists(features, k)
    check_lists(lists, similarity, 1e-6)
    if kind != "clustered":  # exact: every tie is one
        values, columns = similarity.sort(dim=1, descending=True, stable=True)
        assert torch.equal(lists.columns.long(), columns[:, :k])
        assert torch.equal(lists.values, values[:, :k])
        assert torch.equal(lists.floors, values[:, k] if k < n else torch.full((n,), -torch.inf))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [ops.lists_and_lowest, reference.lists_and_lowest])
@pytest.mark.parametrize(("n", "k", "floor"), [(1, 1, 0.9), (40, 5, 0.4), (1100, 20, -torch.inf)])
def test_lists_come_with_the_lowest_similarity_of_each_row(make, kind, n, k, floor):
    features = memory_of(kind, n, 8, seed=n)
    lists, lowest = make(features, k, floor)
    expected = (features @ features.t()).amin(1)
    assert lowest.dtype == torch.float32
    assert (lowest - expected).abs().max() <= (1e-6 if kind == "clustered" else 0)
    check_lists(lists, features @ features.t(), 1e-6)


def test_a_floor_leaves_out_what_is_not_above_it():
    features = memory_of("exact", 50, 8, seed=0)
    similarity = features @ features.t()
    lists = neighbor_lists(features, 50, 0.5)
    assert torch.equal(lists.counts, (similarity > 0.5).sum(1, dtype=torch.int32))
    assert lists.floors.tolist() == [0.5] * 50
    check_lists(lists, similarity, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "k", "capacity"), [(1, 1, 1), (40, 5, 10), (40, 5, 5), (64, 64, 8), (64, 20, 64)]
)
def test_symmetric_lists_hold_each_pair_twice(kind, n, k, capacity):
    features = memory_of(kind, n, 8, seed=n)
    lists = symmetric_lists(neighbor_lists(features, k), capacity)
    check_lists(lists, features @ features.t(), 1e-6)
    assert lists.capacity == capacity


OPERATIONS = torch.ops.snnet


def compiled_update_(memory, index, features, alpha, lists, similarity=None):
    OPERATIONS.update_memory_lists_(memory, index, features, torch.tensor(alpha), *lists, similarity)


UPDATES = {"reference": update_memory_lists_, "compiled": compiled_update_}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_updates_and_labels_are_exact_where_products_are(data):
    """Rows of length 1 with exact products: memory, lists and labels are those of the whole matrix to the bit."""
    n, seed = data.draw(st.integers(1, 60), "n"), data.draw(st.integers(0, 10**6), "seed")
    kind = data.draw(st.sampled_from(["unit", "hubs", *KINDS[2:]]), "kind")
    capacity = data.draw(st.integers(1, n), "K")
    floor = data.draw(st.sampled_from([None, -1.0, -0.5, 0.0, 0.25, 0.5, 0.9]), "floor")
    update_ = UPDATES[data.draw(st.sampled_from(list(UPDATES)), "form")]
    generator = torch.Generator().manual_seed(seed)
    memory = rearranged(unit_rows(n, 6, seed), kind)
    if kind == "hubs":  # two rows that everything is near to
        memory[:2, :4], memory[:2, 4:] = 0.5, 0.0
    expected, cache = memory.clone(), memory @ memory.t()
    lists = sk.neighbor_lists(memory, capacity, floor=floor, symmetric=True)
    check_lists(lists, cache, 0)
    for step in range(4):
        index = torch.randint(n, (data.draw(st.integers(0, 9), "B"),), generator=generator)
        alpha = data.draw(st.sampled_from([0.0, 0.0, 1.0, 0.5]), "alpha")
        features = unit_rows(len(index), 6, seed + step + 1)
        features[1::3] = expected[index[1::3]]
        if 0 < alpha < 1:  # exact only where a feature is its row
            features = expected[index]
        similarity = features @ memory.t() if step % 2 else None
        update_(memory, index, features, alpha, lists, similarity)
        reference.update_memory_(expected, index, features, torch.tensor(alpha), cache=cache)
        assert torch.equal(memory, expected) and torch.equal(cache, memory @ memory.t())
        check_lists(lists, cache, 0)
        threshold = data.draw(st.sampled_from([-2.0, 0.0, 0.25, 0.5, 0.6, 2.0]), "threshold")
        asked, rank = torch.arange(n), data.draw(st.sampled_from([0, 2, 10]), "min_rank")
        for rows in (None, unit_rows(n, 6, seed + 9) @ memory.t()):
            wanted = reference.mplp(memory, asked, threshold, rank, cache=cache, query_rows=rows)
            assert torch.equal(sk.mplp(memory, asked, threshold, rank, lists=lists, query_rows=rows), wanted)
        found = reference.mplp_from_lists(memory, asked, lists, threshold, rank)[0]
        assert torch.equal(found, reference.mplp(memory, asked, threshold, rank, cache=cache))
        for one, other in zip(
            sk.nearest_neighbors(memory, asked, 3, lists=lists),
            reference.nearest_neighbors(memory, asked, 3, cache=cache),
            strict=True,
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("form", UPDATES)
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("k", "capacity"), [(12, 24), (4, 4), (200, 200), (1, 40)])
def test_no_entry_is_missing_after_many_updates(form, repeated, alpha, k, capacity):
    n = 200
    memory = clustered_features(n, 24)
    lists = symmetric_lists(neighbor_lists(memory, k), capacity)
    steps = 40 if form == "compiled" else 10
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        index, features = moving_batch(memory, 16, generator, repeated)
        similarity = features @ memory.t() if step % 2 else None
        UPDATES[form](memory, index, features, alpha, lists, similarity)
        if step % 10 == 9:
            check_lists(lists, memory @ memory.t(), 2e-6)
    exact = memory @ memory.t()
    index = torch.arange(n)
    labels, made = mplp_from_lists(memory, index, lists, 0.6, 10)
    assert torch.equal(labels, reference.mplp(memory, index, 0.6, 10, cache=exact))
    neighbors, _, _ = nearest_from_lists(memory, index, lists, 3)
    assert torch.equal(neighbors, reference.nearest_neighbors(memory, index, 3, cache=exact)[0])
    if capacity == n:
        assert made == 0


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize(("k", "capacity"), [(12, 24), (4, 4), (6, 100)])
def test_compiled_updates_list_what_those_of_the_reference_list(repeated, alpha, k, capacity):
    n = 120
    memory = clustered_features(n, 24, seed=1)
    lists = symmetric_lists(neighbor_lists(memory, k), capacity)
    other_memory, other = memory.clone(), NeighborLists(*(part.clone() for part in lists))
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        index, features = moving_batch(memory, 12, generator, repeated)
        update_memory_lists_(memory, index, features, alpha, lists)
        compiled_update_(other_memory, index, features, alpha, other)
    assert (memory - other_memory).abs().max() < 1e-6
    one, two = dense(lists), dense(other)
    assert torch.equal(one.isnan(), two.isnan())
    assert (one - two).nan_to_num().abs().max() < 2e-6
    assert torch.equal(lists.counts, other.counts)
    assert (lists.floors - other.floors).nan_to_num().abs().max() < 2e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "capacity"), [(1, 1, 1), (40, 5, 5), (130, 130, 20), (1100, 30, 40)])
def test_compiled_lists_are_those_of_the_reference(kind, n, k, capacity):
    features = memory_of(kind, n, 8, seed=n)
    expected, lists = reference.neighbor_lists(features, k), sk.neighbor_lists(features, k)
    if kind == "clustered":
        check_lists(lists, features @ features.t(), 1e-6)
    else:  # exact
        for found, wanted in zip(lists[:4], expected[:4], strict=True):
            assert torch.equal(found, wanted)
    wanted = reference.symmetric_lists(lists, capacity)
    found = NeighborLists(*OPERATIONS.symmetric_lists(*lists[:4], capacity))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@needs_cpu_library
@settings(max_examples=120, deadline=None)
@given(
    n=sizes,
    batch=st.integers(0, 24),
    seed=st.integers(0, 10**6),
    # -2: every image is a candidate; 50: none; 0.5625 and 0.0625 are hit exactly by products of exact rows
    threshold=st.sampled_from([-50.0, 0.0, 0.0625, 0.5625, 0.6, 50.0]),
    min_rank=st.sampled_from([0, 3, 10, 5000]),
    capacity=st.sampled_from([1, 3, 20, 300, 2000]),
    kind=st.sampled_from(KINDS),
    rows=st.booleans(),
)
def test_labels_and_neighbors_from_lists(n, batch, seed, threshold, min_rank, capacity, kind, rows):
    memory, index = exact_memory_of(kind, n, 6, seed), batch_of(n, batch, seed)
    lists, cache = sk.neighbor_lists(memory, capacity, symmetric=True), memory @ memory.t()
    given_rows = exact_rows(batch, 6, seed + 1) @ memory.t() if rows else None
    labels = sk.mplp(memory, index, threshold, min_rank, lists=lists, query_rows=given_rows)
    expected = reference.mplp(memory, index, threshold, min_rank, cache=cache, query_rows=given_rows)
    assert torch.equal(labels, expected)
    assert not reference.unpack_labels(labels, 8 * labels.shape[1])[:, n:].any()  # the tail is 0
    for k in (1, 2, 7, n + 2):
        found = sk.nearest_neighbors(memory, index, k, lists=lists, query_rows=given_rows)
        wanted = reference.nearest_neighbors(memory, index, k, cache=cache, query_rows=given_rows)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["memory", "feature"])
@pytest.mark.parametrize(("n", "k", "capacity", "threshold"), [
    (1, 1, 1, 0.6), (40, 40, 40, 0.5), (130, 12, 20, 0.3), (130, 3, 5, 0.1), (600, 30, 60, 0.4),
])  # fmt: skip
def test_labels_and_neighbors_from_lists_are_those_of_all_similarities(
    cpu_library, kind, source, n, k, capacity, threshold
):
    memory, index = memory_of(kind, n, 8, seed=n), batch_of(n, 50, 1)
    lists = symmetric_lists(sk.neighbor_lists(memory, k), capacity)
    rows = None if source == "memory" else (memory[index] + 0.25) @ memory.t()
    check_labels(cpu_library, memory, index, lists, threshold, 4, rows)
    for count in (1, 3):
        check_neighbors(cpu_library, memory, index, lists, count)


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_rows_that_a_momentum_of_one_normalises_rise_above_floors(kernels, length):
    """With α = 1 a row moves without its feature: its similarities grow or shrink as its length does."""
    rows, index = memory_of("exact", 30, 8, seed=1), torch.tensor([3, 4, 12, 3])
    rows[::3] *= length
    expected = symmetric_lists(neighbor_lists(rows, 6, 0.2), 12)
    memory, lists = rows.clone(), tables_of(kernels, expected)
    update_(kernels, memory, index, rows[index], 1.0, lists)
    check_lists(lists, memory @ memory.t(), 1e-6)
    update_memory_lists_(rows.clone(), index, rows[index], torch.tensor(1.0), expected)
    check_lists(expected, memory @ memory.t(), 1e-6)
    assert torch.equal(dense(lists).isnan(), dense(expected).isnan())
    same_lists(lists, expected)


def test_mirrors_come_and_go_with_the_device(monkeypatch):
    """Lists from a GPU get the mirrors that the kernels of a CPU follow, and lose them on the way back."""
    memory = clustered_features(40, 8)
    lists = symmetric_lists(neighbor_lists(memory, 6), 9)
    bare = without_mirrors(lists)
    assert are_symmetric(lists) and are_symmetric(bare)
    assert torch.equal(with_mirrors(bare).mirrors, lists.mirrors)
    assert with_mirrors(lists) is lists
    with pytest.raises(ValueError, match=r"lists.mirrors must have shape \[40, 9\], got \[40, 0\]"):
        sk.update_memory_(memory, torch.tensor([1]), memory[:1].clone(), 0.5, lists=bare)
    bare.columns[0, :2] = bare.columns[0, :2].flip(0)  # values of other rows now
    assert not are_symmetric(bare)
    monkeypatch.setattr(neighbor_list_layout, "MIRRORED", set())
    assert with_mirrors(lists).mirrors.shape == (40, 0)
    with pytest.raises(ValueError, match=r"lists.mirrors must have shape \[40, 0\], got \[40, 9\]"):
        sk.update_memory_(memory, torch.tensor([1]), memory[:1].clone(), 0.5, lists=lists)


def test_a_floor_that_no_float32_reaches_lists_nothing_or_everything():
    memory = clustered_features(10, 4)
    for make in (sk.neighbor_lists, lambda rows, k, *, floor: neighbor_lists(rows, k, floor)):
        assert make(memory, 4, floor=1e300).counts.tolist() == [0] * 10
        assert make(memory, 10, floor=-1e300).counts.tolist() == [10] * 10


def test_what_lists_refuse():
    memory = clustered_features(10, 4)
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        sk.neighbor_lists(memory, 0)
    with pytest.raises(ValueError, match="floor must be finite"):
        sk.neighbor_lists(memory, 3, floor=float("nan"))
    with pytest.raises(TypeError, match="symmetric must be True or False, got int"):
        sk.neighbor_lists(memory, 3, symmetric=1)


def test_an_update_whose_similarities_would_be_large_is_made_in_parts(monkeypatch):
    features = memory_of("clustered", 60, 8, seed=3)
    index = torch.tensor([4, 9, 4, 30, 59, 9, 0])
    live = memory_of("clustered", 60, 8, seed=4)[index]
    made = []
    for at_once in (2**26, 130):  # all entries, or two of them
        monkeypatch.setattr("snnet_kernels.ops.memory_update.SIMILARITIES_AT_ONCE", at_once)
        memory = features.clone()
        lists = symmetric_lists(neighbor_lists(memory, 10), 20)
        sk.update_memory_(memory, index, live, 0.4, lists=lists)
        check_lists(lists, memory @ memory.t(), 1e-6)
        made.append((memory, lists))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1].counts, made[1][1].counts)
    assert torch.equal(made[0][1].floors, made[1][1].floors)


class Stop(Exception):
    """What a handler of the caller's raises."""


@needs_cpu_library
@pytest.mark.parametrize("raised", [Stop("enough"), SystemExit(143), KeyboardInterrupt()], ids=repr)
def test_what_a_signals_handler_raises_ends_a_build(raised):
    """As it is: the handler runs between the bands of a build."""
    features = clustered_features(3000, 8)

    def handler(*_):
        raise raised

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(type(raised)) as caught:
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            for _ in range(1000):
                sk.neighbor_lists(features, 5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value is raised
    assert sk.neighbor_lists(features, 5).counts.sum() == 15_000


@needs_cpu_library
def test_a_build_runs_python_between_bands(monkeypatch):
    """A band is the work between two looks at signals, so few rows; what is raised there comes out as it is."""
    firsts = []

    def band(*arguments):
        firsts.append(arguments[1])
        if len(firsts) == 3:
            raise Stop
        return take_band(*arguments)

    take_band = torch.ops.snnet.take_band_.default
    monkeypatch.setattr(torch.ops.snnet.take_band_, "default", band)
    with pytest.raises(Stop):
        sk.neighbor_lists(clustered_features(5000, 8), 5)
    assert firsts == [0, 1024, 2048]
