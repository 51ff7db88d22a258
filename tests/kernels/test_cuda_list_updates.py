"""The CUDA update of neighbour lists, run on CPU tensors by the emulation, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from snnet_kernels import reference
from snnet_kernels.reference.memory_update import update_memory_lists_
from snnet_kernels.reference.neighbor_lists import neighbor_lists, symmetric_lists
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import memory_of, moving_batch
from tests.kernels.list_checks import (
    KINDS,
    check_lists,
    dense,
    outcome,
    same_lists,
    update_,
    without_mirrors,
)


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
        check_lists(lists, memory @ memory.t(), 2e-6)
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
        check_lists(lists, memory @ memory.t(), 4e-6)
    build.seed(seed)
    labels, _ = build.operations.mplp_from_lists(memory, index, *lists[:4], None, 0.6, 2)
    # Near a tie rounding decides: a product of two rows in another order is another number.
    exact = memory.double() @ memory.double().t()
    gaps = (exact[:, :, None] - exact[:, None, :]).abs().flatten()
    close = (gaps < 4e-6) & (gaps > 0)
    if kind == "clustered" and not close.any() and not ((exact - 0.6).abs() < 4e-6).any():
        assert torch.equal(labels, reference.mplp(memory, index, 0.6, 2, cache=memory @ memory.t()))


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
        check_lists(own, own_memory @ own_memory.t(), 2e-6)
        made.append((own_memory, dense(own), own.floors))
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


@pytest.mark.parametrize("barrier", ["after the members", "after what is pushed out"])
def test_updates_without_a_barrier_are_found(switched_barriers, without_barrier, barrier):
    memory = clustered_features(120, 12)
    expected = symmetric_lists(neighbor_lists(memory, 8), 8)
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(120, generator=generator)[:40]
    # All move to one place: rows overflow with each other.
    features = normalize(memory[:1] + 0.2 * torch.randn(40, 12, generator=generator), dim=1)
    own = memory.clone(), without_mirrors(expected)
    update_memory_lists_(memory.clone(), index, features, 0.3, expected)

    def updated(build, seed):
        own_memory, lists = own[0].clone(), without_mirrors(own[1])
        build.seed(seed)
        update_(build, own_memory, index, features, 0.3, lists)
        same_lists(lists, expected)
        check_lists(lists, own_memory @ own_memory.t(), 2e-6)

    updated(switched_barriers, 0)
    broken = without_barrier(barrier)
    assert not all(outcome(lambda s=seed: updated(broken, s)) for seed in range(5))
