"""The CUDA kernels of neighbour lists, run on CPU tensors by the emulation, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import neighbor_list_layout, reference
from snnet_kernels.neighbor_list_layout import NeighborLists, are_symmetric, with_mirrors
from snnet_kernels.reference.memory_update import update_memory_lists_
from snnet_kernels.reference.neighbor_lists import neighbor_lists, symmetric_lists
from snnet_kernels.testing import clustered_features
from tests.kernels.cpu_inputs import memory_of

KINDS = ("clustered", "exact", "same", "zero rows", "duplicates")


def dense(lists: NeighborLists, n: int) -> torch.Tensor:
    """The listed values [n, n], NaN where nothing is listed."""
    row, place = (lists.columns >= 0).nonzero().unbind(1)
    made = torch.full((n, n), torch.nan)
    made[row, lists.columns[row, place].long()] = lists.values[row, place]
    return made


def check(lists: NeighborLists, similarity: torch.Tensor, tolerance: float) -> None:
    """Everything above the floors is listed with its value, from both sides, in the first places of a row."""
    listed = dense(lists, len(similarity))
    missing = listed.isnan() & (similarity > lists.floors[:, None] + tolerance)
    assert int(missing.sum()) == 0
    assert (listed - similarity).nan_to_num().abs().max() <= tolerance
    places = torch.arange(lists.capacity) < lists.counts[:, None]
    assert torch.equal(places, lists.columns >= 0)
    assert torch.equal(places, lists.values > -torch.inf)
    assert int((~listed.isnan()).sum()) == int(lists.counts.sum())  # none twice
    assert torch.equal(listed.isnan(), listed.t().isnan())
    assert torch.equal(listed.nan_to_num(), listed.t().nan_to_num())


def without_mirrors(lists: NeighborLists) -> NeighborLists:
    """A copy of the tables as a GPU keeps them."""
    tables = [part.clone() for part in lists[:4]]
    return NeighborLists(*tables, torch.empty(len(lists.counts), 0, dtype=torch.int32))


def update_(build, memory, index, features, alpha, lists):
    build.operations.update_memory_lists_(
        memory, index, features, torch.tensor(alpha), *lists, features @ memory.t()
    )


def same_lists(ours: NeighborLists, theirs: NeighborLists, tolerance: float = 2e-6) -> None:
    """The same pairs, but for those whose similarity is a floor's but for rounding."""
    n = len(ours.counts)
    one, two = dense(ours, n), dense(theirs, n)
    assert (ours.floors - theirs.floors).nan_to_num().abs().max() <= tolerance
    assert (one - two).nan_to_num().abs().max() <= tolerance
    value = torch.where(one.isnan(), two, one)
    gap = (value - theirs.floors[:, None]).abs()
    differ = (one.isnan() != two.isnan()) & (torch.minimum(gap, gap.t()) > tolerance)
    assert int(differ.sum()) == 0


def moving_batch(memory, batch, generator, repeated=False):
    """Features near their rows, nearly opposite to them, and far."""
    n, d = memory.shape
    index = (
        torch.randint(n, (batch,), generator=generator)
        if repeated
        else torch.randperm(n, generator=generator)[:batch]
    )
    noise = torch.randn(len(index), d, generator=generator)
    features = normalize(memory[index] + 0.2 * noise, dim=1)
    features[:2] = normalize(noise[:2] * 1e-2 - memory[index[:2]], dim=1)
    features[2:3] = normalize(noise[2:3], dim=1)
    return index, features


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("k", "capacity"), [(12, 24), (4, 4), (1, 1), (6, 70), (70, 70)])
def test_updates_list_what_those_of_the_reference_list(cuda_on_cpu, alpha, k, capacity):
    n, generator = 70, torch.Generator().manual_seed(capacity)
    memory = clustered_features(n, 12, seed=1)
    expected = symmetric_lists(neighbor_lists(memory, k), capacity)
    other_memory, lists = memory.clone(), without_mirrors(expected)
    for step in range(5):
        index, features = moving_batch(memory, 9, generator)
        update_memory_lists_(memory, index, features, alpha, expected)
        cuda_on_cpu.seed(step)
        cuda_on_cpu.launches()
        update_(cuda_on_cpu, other_memory, index, features, alpha, lists)
        assert cuda_on_cpu.launches() == 3
        assert (memory - other_memory).abs().max() < 1e-6
        check(lists, memory @ memory.t(), 2e-6)
        same_lists(lists, expected)


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([1, 2, 5, 20, 40, 70]),
    d=st.sampled_from([1, 4, 9]),
    capacity=st.sampled_from([1, 2, 3, 5, 8, 20, 70]),
    kind=st.sampled_from(KINDS),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    repeated=st.booleans(),
    small=st.booleans(),
    odd=st.sampled_from(["", "zero", "nan", "same"]),
    seed=st.integers(0, 10**6),
)
def test_no_entry_is_missing(
    cuda_on_cpu, small_constants, n, d, capacity, kind, alpha, repeated, small, odd, seed
):
    """Hubs, duplicates, repeated indices, rows that overflow, and with ``small`` events that do."""
    generator = torch.Generator().manual_seed(seed)
    memory = normalize(memory_of(kind, n, d, seed=seed), dim=1)
    capacity = min(capacity, n)
    k = int(torch.randint(1, capacity + 1, (), generator=generator))
    lists = without_mirrors(symmetric_lists(neighbor_lists(memory, k), capacity))
    build = small_constants if small else cuda_on_cpu
    for step in range(3):
        batch = int(torch.randint(1, 12, (), generator=generator))
        index, features = moving_batch(memory, batch, generator, repeated)
        if odd == "same":
            features = memory[index].clone()
        elif odd:
            features[-1] = 0 if odd == "zero" else torch.nan
        expected = memory.clone()
        reference.update_memory_(expected, index, features, alpha)
        build.seed(seed + step)
        update_(build, memory, index, features, alpha, lists)
        assert (memory - expected).abs().max() < 2e-6
        check(lists, memory @ memory.t(), 4e-6)
    build.seed(seed)
    labels, _ = build.operations.mplp_from_lists(memory, index, *lists[:4], None, 0.6, 2)
    # Near a tie rounding decides: a product of two rows in another order is another number.
    exact = memory.double() @ memory.double().t()
    gaps = (exact[:, :, None] - exact[:, None, :]).abs().flatten()
    close = (gaps < 4e-6) & (gaps > 0)
    if kind == "clustered" and not close.any() and not ((exact - 0.6).abs() < 4e-6).any():
        assert torch.equal(labels, reference.mplp(memory, index, 0.6, 2, cache=memory @ memory.t()))


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_rows_that_a_momentum_of_one_normalises_rise_above_floors(cuda_on_cpu, length):
    """With α = 1 a row moves without its feature: its similarities grow or shrink as its length does."""
    rows, index = memory_of("exact", 30, 8, seed=1), torch.tensor([3, 4, 12, 3])
    rows[::3] *= length
    memory, lists = rows.clone(), without_mirrors(symmetric_lists(neighbor_lists(rows, 6, 0.2), 12))
    update_(cuda_on_cpu, memory, index, rows[index], 1.0, lists)
    check(lists, memory @ memory.t(), 1e-6)
    expected = symmetric_lists(neighbor_lists(rows, 6, 0.2), 12)
    update_memory_lists_(rows.clone(), index, rows[index], torch.tensor(1.0), expected)
    same_lists(lists, expected)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("capacity", [4, 12])
def test_blocks_may_run_in_any_order_and_at_once(cuda_on_cpu, small_constants, capacity, small):
    """Four blocks at a time, switched at random places: every order makes the same lists, but for full events."""
    n, build = 60, small_constants if small else cuda_on_cpu
    memory = clustered_features(n, 12, seed=2)
    lists = symmetric_lists(neighbor_lists(memory, capacity), capacity)
    index, features = moving_batch(memory, 10, torch.Generator().manual_seed(3))
    made = []
    for seed in range(6):
        own_memory, own = memory.clone(), without_mirrors(lists)
        build.seed(seed, blocks_at_once=1 if seed == 0 else 4)
        update_(build, own_memory, index, features, 0.3, own)
        build.seed(seed)
        check(own, own_memory @ own_memory.t(), 2e-6)
        made.append((own_memory, dense(own, n), own.floors))
    for own_memory, listed, floors in made[1:]:
        assert torch.equal(own_memory, made[0][0])
        if not small:
            assert torch.equal(listed.nan_to_num(-9), made[0][1].nan_to_num(-9))
            assert torch.equal(floors, made[0][2])


def test_an_update_of_nothing_and_what_it_refuses(cuda_on_cpu):
    memory, none = clustered_features(20, 4), torch.zeros(0, dtype=torch.int64)
    lists = without_mirrors(symmetric_lists(neighbor_lists(memory, 3), 5))
    before = [part.clone() for part in lists]
    cuda_on_cpu.launches()
    update_(cuda_on_cpu, memory, none, torch.zeros(0, 4), 0.5, lists)
    assert cuda_on_cpu.launches() == 0
    beyond = torch.tensor([-1, 20, 2**40])
    update_(cuda_on_cpu, memory, beyond, torch.zeros(3, 4), 0.5, lists)
    assert all(torch.equal(*pair) for pair in zip(lists, before, strict=True))
    index, features = torch.tensor([1]), memory[:1]
    for change, message in [
        ({"mirrors": torch.zeros(20, 5, dtype=torch.int32)}, r"lists.mirrors must have shape \[20, 0\]"),
        ({"columns": lists.columns.long()}, "lists.columns has the wrong type"),
        ({"values": lists.values[:, :3]}, r"lists.values must have shape \[20, 5\], got \[20, 3\]"),
        ({"counts": lists.counts[:4]}, "lists.counts must have 20 entries, got 4"),
        ({"floors": lists.floors.double()}, "lists.floors must be a contiguous vector"),
    ]:
        with pytest.raises((ValueError, RuntimeError), match=message):
            update_(cuda_on_cpu, memory, index, features, 0.5, lists._replace(**change))
    with pytest.raises((ValueError, RuntimeError), match="similarity must be given"):
        cuda_on_cpu.operations.update_memory_lists_(memory, index, features, torch.tensor(0.5), *lists, None)


@pytest.mark.parametrize("kind", ["clustered", "exact", "same"])
@pytest.mark.parametrize(("n", "k", "tile"), [(1, 1, 4), (40, 9, 16), (50, 50, 33), (110, 20, 64)])
def test_lists_are_built_from_tiles(cuda_on_cpu, small_constants, kind, n, k, tile):
    features = memory_of(kind, n, 8, seed=n)
    for build, floor in ((cuda_on_cpu, -torch.inf), (small_constants, 0.25)):
        tables = (
            torch.full((n, k), -1, dtype=torch.int32),
            torch.full((n, k), -torch.inf),
            torch.zeros(n, dtype=torch.int32),
            torch.full((n,), floor),
        )
        products = features @ features.t()
        products = products.tril() + products.tril(-1).t()
        build.seed(n)
        for top in range(0, n, tile):
            for left in range(0, n, tile):
                part = products[top : top + tile, left : left + tile].contiguous()
                build.operations.take_products_(part, top, left, *tables)
        lists, expected = NeighborLists(*tables), neighbor_lists(features, k, floor)
        if kind == "clustered":
            same_lists(lists, expected)
        else:
            assert torch.equal(dense(lists, n).nan_to_num(-99), dense(expected, n).nan_to_num(-99))
            assert torch.equal(lists.floors, expected.floors)
        assert torch.equal(lists.counts, expected.counts)


def check_labels(build, memory, index, lists, threshold, min_rank, rows=None, seed=0, blocks_at_once=1):
    """Labels from lists are those of the whole matrix; returns how many rows were multiplied."""
    expected = reference.mplp(memory, index, threshold, min_rank, cache=memory @ memory.t(), query_rows=rows)
    _, plain_made = reference.mplp_from_lists(memory, index, lists, threshold, min_rank, query_rows=rows)
    build.seed(seed, blocks_at_once)
    labels, made = build.operations.mplp_from_lists(memory, index, *lists[:4], rows, threshold, min_rank)
    build.seed(seed)
    assert torch.equal(labels, expected)
    if plain_made == 0:
        assert int(made) == 0
    return int(made)


def check_neighbors(build, memory, index, lists, k, seed=0, blocks_at_once=1):
    wanted, values = reference.nearest_neighbors(memory, index, k, cache=memory @ memory.t())
    plain_made = reference.nearest_from_lists(memory, index, lists, k)[2]
    build.seed(seed, blocks_at_once)
    neighbors, similarity, made = build.operations.nearest_from_lists(memory, index, *lists[:4], k)
    build.seed(seed)
    assert torch.equal(neighbors, wanted)
    assert (similarity - values).nan_to_num().abs().max() < 1e-6
    assert int(made) == plain_made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "k", "capacity", "threshold"),
    [(1, 1, 1, 0.6), (40, 40, 40, 0.5), (100, 12, 20, 0.3), (100, 3, 5, 0.1), (70, 1, 1, -9.0)],
)
def test_labels_and_neighbors_are_those_of_all_similarities(
    cuda_on_cpu, small_constants, kind, n, k, capacity, threshold
):
    memory = memory_of(kind, n, 8, seed=n)
    index = torch.randint(n, (9,), generator=torch.Generator().manual_seed(1))
    lists = symmetric_lists(neighbor_lists(memory, k), capacity)
    for build in (cuda_on_cpu, small_constants):
        for rows in (None, (memory[index] + 0.25) @ memory.t()):
            check_labels(build, memory, index, lists, threshold, 4, rows, seed=k)
        for count in (1, 3, n + 1):
            check_neighbors(build, memory, index, lists, count, seed=k)


@pytest.mark.parametrize(("small", "n", "size"), [(False, 520, 2), (True, 130, 5)])
def test_whoever_multiplies_last_decides(cuda_on_cpu, small_constants, small, n, size):
    """Rows that lists do not tell, in some slices: blocks take turns at random places."""
    build = small_constants if small else cuda_on_cpu
    memory, index = memory_of("exact", n, 8, seed=n), torch.arange(0, n, n // size)[:size]
    lists = symmetric_lists(neighbor_lists(memory, 1), 1)
    for seed in range(3 if small else 1):
        made = check_labels(build, memory, index, lists, 1.5, 6, seed=seed, blocks_at_once=4)
        assert made > size  # rows of the batch, and candidates
        check_neighbors(build, memory, index, lists, 7, seed=seed, blocks_at_once=4)


def test_a_label_step_is_twelve_launches(cuda_on_cpu):
    """What benchmarks/floors.yaml counts with: labels, neighbours, two reads of P and a write, the update."""
    memory, index = clustered_features(40, 8), torch.arange(6)
    lists = without_mirrors(symmetric_lists(neighbor_lists(memory, 8), 16))
    bits = reference.pack_labels(torch.eye(40, dtype=torch.bool))
    operations, counts = cuda_on_cpu.operations, []
    cuda_on_cpu.launches()
    labels, _ = operations.mplp_from_lists(memory, index, *lists[:4], None, 0.6, 2)
    counts.append(cuda_on_cpu.launches())
    neighbors = operations.nearest_from_lists(memory, index, *lists[:4], 1)[0]
    counts.append(cuda_on_cpu.launches())
    operations.gather_labels(bits, index)
    operations.gather_labels(bits, neighbors.flatten())
    operations.write_labels_(bits, bits.clone(), index, labels)
    counts.append(cuda_on_cpu.launches())
    update_(cuda_on_cpu, memory, index, memory[index].clone(), 0.3, lists)
    counts.append(cuda_on_cpu.launches())
    assert counts == [4, 2, 3, 3] and sum(counts) == 12


def test_the_count_of_products_does_not_depend_on_the_order_of_blocks(cuda_on_cpu):
    memory, index = clustered_features(60, 8), torch.arange(0, 60, 9)
    lists = symmetric_lists(neighbor_lists(memory, 3), 5)
    counts = {
        check_labels(cuda_on_cpu, memory, index, lists, 0.2, 2, seed=seed, blocks_at_once=1 + seed)
        for seed in range(3)
    }
    assert len(counts) == 1 and counts.pop() > len(index)


def test_rows_of_a_hub_and_rows_of_no_place(cuda_on_cpu):
    """An index out of range reads some row; nan is above nothing; lists of no entry leave all to products."""
    memory = clustered_features(50, 8)
    index = torch.tensor([0, 7, 49, -1, 50, 2**40])
    lists = symmetric_lists(neighbor_lists(memory, 4), 8)
    inside = index.clamp(0, 49)
    labels, _ = cuda_on_cpu.operations.mplp_from_lists(memory, index, *lists[:4], None, 0.5, 3)
    assert torch.equal(labels, reference.mplp(memory, inside, 0.5, 3, cache=memory @ memory.t()))
    none = NeighborLists(
        torch.full((50, 2), -1, dtype=torch.int32),
        torch.full((50, 2), -torch.inf),
        torch.zeros(50, dtype=torch.int32),
        torch.full((50,), 5.0),
    )
    assert check_labels(cuda_on_cpu, memory, inside, none, 0.5, 3) > len(index)
    check_neighbors(cuda_on_cpu, memory, inside, none, 2)
    rows = memory[inside] @ memory.t()
    rows[:, ::3] = torch.nan
    labels, _ = cuda_on_cpu.operations.mplp_from_lists(memory, inside, *lists[:4], rows, 0.5, 3)
    expected = reference.mplp_from_lists(memory, inside, lists, 0.5, 3, query_rows=rows)[0]
    assert torch.equal(labels, expected)


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


def outcome(check) -> bool:
    """Whether a check passes; the emulation reports what a GPU leaves undefined as an error."""
    try:
        check()
    except (AssertionError, RuntimeError):
        return False
    return True


def test_a_decision_before_the_products_are_there_is_found(switched_barriers, without_barrier):
    """Another block takes the place of the last one while this one still multiplies."""
    memory, index = memory_of("exact", 300, 8, seed=0), torch.arange(0, 300, 60)
    lists = symmetric_lists(neighbor_lists(memory, 1), 1)

    def check(build, seed):
        assert check_labels(build, memory, index, lists, 1.5, 4, seed=seed, blocks_at_once=8) > len(index)

    check(switched_barriers, 0)
    broken = without_barrier("before the last block is told")
    assert not all(outcome(lambda s=seed: check(broken, s)) for seed in range(8))


@pytest.mark.parametrize("barrier", ["of keys", "before the candidates are read"])
def test_labels_without_a_barrier_are_found(switched_barriers, without_barrier, barrier):
    memory, index = clustered_features(300, 24), torch.arange(0, 300, 17)
    lists = symmetric_lists(neighbor_lists(memory, 40), 80)
    check_labels(switched_barriers, memory, index, lists, 0.5, 4)
    broken = without_barrier(barrier)
    assert not all(
        outcome(lambda s=seed: check_labels(broken, memory, index, lists, 0.5, 4, seed=s))
        for seed in range(5)
    )


@pytest.mark.parametrize("barrier", ["after the members", "after what is pushed out"])
def test_updates_without_a_barrier_are_found(switched_barriers, without_barrier, barrier):
    memory = clustered_features(120, 12)
    expected = symmetric_lists(neighbor_lists(memory, 8), 8)
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(120, generator=generator)[
        :40
    ]  # all move to one place: rows overflow with each other
    features = normalize(memory[:1] + 0.2 * torch.randn(40, 12, generator=generator), dim=1)
    own = memory.clone(), without_mirrors(expected)
    update_memory_lists_(memory.clone(), index, features, 0.3, expected)

    def updated(build, seed):
        own_memory, lists = own[0].clone(), without_mirrors(own[1])
        build.seed(seed)
        update_(build, own_memory, index, features, 0.3, lists)
        same_lists(lists, expected)
        check(lists, own_memory @ own_memory.t(), 2e-6)

    updated(switched_barriers, 0)
    broken = without_barrier(barrier)
    assert not all(outcome(lambda s=seed: updated(broken, s)) for seed in range(5))
