"""The CUDA kernels that build and read neighbour lists, run on CPU tensors by the emulation, against the reference."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snnet_kernels import reference
from snnet_kernels.backends import gpu
from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.reference.neighbor_lists import neighbor_lists, symmetric_lists
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import memory_of
from tests.kernels.list_checks import (
    KINDS,
    check_labels,
    check_neighbors,
    dense,
    outcome,
    same_lists,
    update_,
    without_mirrors,
)


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
            assert torch.equal(dense(lists).nan_to_num(-99), dense(expected).nan_to_num(-99))
            assert torch.equal(lists.floors, expected.floors)
        assert torch.equal(lists.counts, expected.counts)


class ShapesOfProducts(TorchDispatchMode):
    """The shapes of the operands of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.found.add(tuple(tuple(operand.shape) for operand in args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("n", "rows"), [(16, 16), (7, 7), (40, 14), (32, 16)])
def test_products_of_lists_have_one_shape(cuda_on_cpu, monkeypatch, n, rows):
    monkeypatch.setattr(gpu, "TILE", 16)
    monkeypatch.setattr(gpu, "choose", lambda *_: "cuda")
    features = memory_of("exact", n, 8, seed=n)
    with ShapesOfProducts() as shapes:
        *lists, lowest = gpu._neighbor_lists(features, 5, -torch.inf)
    assert shapes.found == {((rows, 8), (8, rows))}
    expected = neighbor_lists(features, 5)
    for ours, theirs in zip(lists, expected, strict=False):
        assert torch.equal(ours, theirs)
    assert torch.equal(lowest, (features @ features.t()).amin(1))


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


@pytest.mark.parametrize(("n", "size", "rows"), [(100_000, 64, 64), (1_200_000, 64, 55)])
def test_the_whole_gpu_multiplies_for_a_batch_or_as_much_as_there_is_room_for(cuda_on_cpu, n, size, rows):
    column = (torch.arange(n, dtype=torch.int32) + 1) % n
    one = torch.ones(n, dtype=torch.int32)
    lists = column[:, None], torch.full((n, 1), 0.5), one, torch.zeros(n)
    with torch.profiler.profile(profile_memory=True) as profile:
        index, _, made = cuda_on_cpu.operations.nearest_from_lists(
            torch.ones(n, 1), torch.arange(size), *lists, 1
        )
    assert torch.equal(index[:, 0], torch.arange(size) + 1) and made == 0
    taken = max(event.self_cpu_memory_usage for event in profile.events())
    assert 4 * rows * n <= taken < 4 * rows * n + 4096


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
