"""The CUDA label kernels, run on CPU tensors by the emulation, against the reference: every bit equal."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels.cpu_inputs import exact_rows, rearranged

# Around the borders of a byte, of a warp's word, of a 16-byte word, and rows at every alignment.
SIZES = [1, 2, 7, 9, 33, 127, 128, 129, 302]
KINDS = ["exact", "clustered", "same", "zero rows", "duplicates"]


def memory_of(kind: str, n: int, seed: int) -> torch.Tensor:
    """Features [n, 6] whose products are exact in float32, so that there are ties."""
    memory = exact_rows(n, 6, seed)
    if kind == "clustered":
        memory = (clustered_features(n, 6, seed=seed) * 64).round() / 64
    return rearranged(memory, kind)


def indices(n: int, batch: int, seed: int) -> torch.Tensor:
    return torch.randint(n, (batch,), generator=torch.Generator().manual_seed(seed + 99))


def label_memory(n: int, seed: int, density: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """A pseudo label memory and its transpose."""
    dense = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density
    return reference.pack_labels(dense), reference.pack_labels(dense.t())


@pytest.mark.parametrize("n", SIZES)
def test_pack_and_unpack(cuda_on_cpu, n):
    flags = torch.rand(5, n, generator=torch.Generator().manual_seed(n)) < 0.3
    packed = cuda_on_cpu.operations.pack_labels(flags)
    assert torch.equal(packed, reference.pack_labels(flags))
    assert torch.equal(cuda_on_cpu.operations.unpack_labels(packed, n), flags)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_gather(cuda_on_cpu, n, batch):
    bits, _ = label_memory(n, n, 0.5)
    index = indices(n + 1, batch, 3) - 1  # -1 is an empty row
    gathered = cuda_on_cpu.operations.gather_labels(bits, index)
    assert torch.equal(gathered, reference.gather_labels(bits, index))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_write(cuda_on_cpu, n, batch, seed):
    rows, columns = label_memory(n, seed)
    expected = rows.clone(), columns.clone()
    index = indices(n, batch, seed)  # with repeats: the last row counts
    labels = reference.pack_labels(torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < 0.2)
    reference.write_labels_(*expected, index, labels)
    if n % 8:
        labels[:, n // 8] |= 0x80  # a bit past n is dropped
    labels[:, (n + 7) // 8 :] = 0xFF
    cuda_on_cpu.seed(seed)
    cuda_on_cpu.operations.write_labels_(rows, columns, index, labels)
    assert torch.equal(rows, expected[0])
    assert torch.equal(columns, expected[1])


def check_mplp(
    build, memory, index, threshold=0.6, min_rank=10, strict=False, query_rows=None, seed=0, cache=None
):
    cache = memory @ memory.t() if cache is None else cache
    build.seed(seed)
    labels = build.operations.mplp(index, cache, query_rows, threshold, min_rank, strict)
    expected = reference.mplp(
        memory, index, threshold, min_rank, cache=cache, query_rows=query_rows, strict=strict
    )
    assert torch.equal(labels, expected)
    blocks = reference.block_bits(cache, threshold)
    marked = build.operations.mplp(index, cache, query_rows, threshold, min_rank, strict, blocks, threshold)
    assert torch.equal(marked, expected)
    return labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_mplp(cuda_on_cpu, small_constants, n, kind):
    memory = memory_of(kind, n, n)
    check_mplp(cuda_on_cpu, memory, indices(n, 5, n), seed=n)
    query_rows = (
        torch.randint(-3, 4, (40, 6), generator=torch.Generator().manual_seed(n)).float() / 4
    ) @ memory.t()
    for threshold, min_rank, strict in [(0.6, 10, False), (0.5, 3, True), (0.0, 0, False), (0.6, 0, True)]:
        for rows in (None, query_rows) if strict else (None,):
            check_mplp(small_constants, memory, indices(n, 40, n), threshold, min_rank, strict, rows, seed=n)


def test_long_rows(cuda_on_cpu):
    """Rows of several rounds of loads, at every alignment."""
    memory = clustered_features(4099, 24)
    check_mplp(cuda_on_cpu, memory, torch.arange(8))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("threshold", [-50.0, 50.0])
def test_every_image_or_none_is_a_candidate(cuda_on_cpu, small_constants, threshold, strict):
    memory = memory_of("exact", 302, 0)
    for build in (cuda_on_cpu, small_constants):
        labels = check_mplp(build, memory, indices(302, 5, 0), threshold, 0, strict)
        positives = reference.unpack_labels(labels, 302).sum(1)
        assert (positives == (302 if threshold < 0 else 1)).all()


def test_more_candidates_than_are_listed(cuda_on_cpu):
    """About half of the images are candidates: counted from the bits of the label row; most walks end early."""
    memory = torch.randn(700, 3, generator=torch.Generator().manual_seed(5))
    memory[:, 0] += 1.0
    memory = torch.nn.functional.normalize(memory, dim=1)
    index = indices(700, 5, 5)
    labels = check_mplp(cuda_on_cpu, memory, index, 0.3, seed=5)
    positives = reference.unpack_labels(labels, 700).sum(1)
    candidates = (memory[index] @ memory.t() > 0.3).sum(1)
    print(positives, candidates)
    assert (candidates > 256).sum() >= 3 and (positives < candidates).any() and positives.max() > 2


@pytest.mark.parametrize("seed", range(6))
def test_walks_end_where_the_first_candidate_fails(cuda_on_cpu, small_constants, seed):
    """Clusters with hubs: many candidates fail, in any order of blocks and threads the same labels."""
    memory = clustered_features(500, 24, seed=seed)
    index = torch.arange(seed, 500, 11)
    for build in (cuda_on_cpu, small_constants):
        labels = reference.unpack_labels(check_mplp(build, memory, index, seed=seed), 500)
    candidates = memory[index] @ memory.t() > 0.6
    assert 1 - (labels & candidates).sum() / candidates.sum() > 0.1  # thresholding alone would not pass


def test_the_sample_may_not_be_its_own_anchor(cuda_on_cpu, small_constants):
    """Another image first, by a larger similarity or a lower index; the anchor's own rank counts then."""
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(130, 4, generator=generator)  # not of length 1
    cache = (memory @ memory.t()).div_(3)
    cache[5, 7] = cache[5, 5]
    cache[9, 2] = cache[9, 9]
    for build, index in ((cuda_on_cpu, torch.arange(4, 11)), (small_constants, torch.arange(130))):
        for min_rank in (0, 5):
            check_mplp(build, memory, index, 0.6, min_rank, cache=cache)
            check_mplp(build, memory, index, 0.6, min_rank, strict=True, cache=cache)


def test_nan_is_no_candidate_and_no_rank(cuda_on_cpu, small_constants):
    generator = torch.Generator().manual_seed(2)
    memory = memory_of("clustered", 200, 2)
    cache = memory @ memory.t()
    cache[torch.rand(200, 200, generator=generator) < 0.05] = torch.nan
    cache[3] = torch.nan
    index = torch.arange(0, 200, 3)
    expected = reference.mplp(memory, index, cache=cache, query_rows=cache[index].nan_to_num(-torch.inf))
    for build in (cuda_on_cpu, small_constants):
        assert torch.equal(build.operations.mplp(index, cache, None, 0.6, 10, False), expected)


@pytest.mark.parametrize("floor", [-2.0, 0.0, 0.55, 0.6, 0.65, 1.5])
def test_marks_down_to_any_floor_give_the_same_labels(cuda_on_cpu, small_constants, floor):
    """Where the anchor lies below the floor the whole row is counted; NaN counts nowhere."""
    memory = clustered_features(700, 24, seed=3)
    cache = memory @ memory.t()
    cache[torch.rand(700, 700, generator=torch.Generator().manual_seed(0)) < 0.01] = torch.nan
    index = indices(700, 40, 3)
    query_rows = cache[index].roll(1, 0).nan_to_num(-torch.inf)
    expected = reference.mplp(memory, index, cache=cache, query_rows=query_rows)
    bits = cuda_on_cpu.operations.mark_cache_blocks(cache, floor)
    assert torch.equal(bits, reference.block_bits(cache, floor))
    needless = bits | 0xAA
    for build in (cuda_on_cpu, small_constants):
        for marks in (bits, needless):
            arguments = (index, cache, query_rows, 0.6, 10, False, marks, floor)
            assert torch.equal(build.operations.mplp(*arguments), expected)
    if floor == 0.6:  # they are what is read
        unmarked = cuda_on_cpu.operations.mplp(index, cache, query_rows, 0.6, 10, False, 0 * bits, floor)
        assert not torch.equal(unmarked, expected)


def test_marks_of_more_words_than_a_warp_has_lanes(cuda_on_cpu):
    """Rows of more than 32 times 1024 columns: a cache of 4 GB, of which 60 rows are touched."""
    n = 33_100
    places = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:60]
    near = clustered_features(60, 8, identities=3)
    cache = torch.from_numpy(np.zeros((n, n), dtype=np.float32))
    cache[places[:, None], places] = near @ near.t()
    bits = torch.zeros(n, reference.cache_blocks.block_bytes(n), dtype=torch.uint8)
    blocks = reference.CacheBlocks(bits, 0.6)
    rows = reference.cache_blocks._high_blocks(cache[places], 0.6)
    bits[places] = rows
    index = places[:8]
    expected = reference.mplp(torch.empty(n, 1), index, cache=cache)
    assert torch.equal(cuda_on_cpu.operations.mplp(index, cache, None, 0.6, 10, False, *blocks), expected)
    positives = reference.unpack_labels(expected, n).sum(1)
    assert (positives < (cache[index] > 0.6).sum(1)).any() and positives.max() > 2


@pytest.mark.parametrize("n", [0, *SIZES, 1500])
def test_marks(cuda_on_cpu, n):
    cache = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    cache[:, ::5] = torch.nan
    for floor in (0.6, 2.5):
        marks = cuda_on_cpu.operations.mark_cache_blocks(cache, floor)
        assert torch.equal(marks, reference.block_bits(cache, floor))


def test_rows_at_any_address(cuda_on_cpu):
    """A cache and query rows that begin at an odd word, and query rows with a stride."""
    memory = memory_of("clustered", 126, 0)
    index = indices(126, 11, 0)
    for offset in range(1, 4):
        cache = torch.empty(126 * 126 + offset)[offset:].view(126, 126).copy_(memory @ memory.t())
        check_mplp(cuda_on_cpu, memory, index, cache=cache)
        check_mplp(cuda_on_cpu, memory, index, cache=cache, query_rows=torch.rand(126, 11).t())


def test_empty_batch_and_empty_memory(cuda_on_cpu):
    operations = cuda_on_cpu.operations
    none = torch.zeros(0, dtype=torch.int64)
    for n, width in ((0, 0), (40, 16)):
        cache, bits = torch.zeros(n, n), torch.zeros(n, width, dtype=torch.uint8)
        cuda_on_cpu.launches()
        assert operations.mplp(none, cache, None, 0.6, 10, False).shape == (0, width)
        assert [
            labels.shape
            for labels in operations.mine_labels_(none, cache, None, bits, bits.clone(), 0.6, 10, False)
        ] == [(0, width)] * 3
        assert [part.shape for part in operations.nearest_neighbors(none, cache, None, 3)] == [(0, 3)] * 2
        operations.write_labels_(bits, bits.clone(), none, torch.zeros(0, width, dtype=torch.uint8))
        assert operations.gather_labels(bits, none).shape == (0, width)
        assert cuda_on_cpu.launches() == 0


def check_mining(build, memory, index, query_rows=None, seed=0, min_rank=10, threshold=0.6, marked=True):
    n = memory.shape[0]
    cache = memory @ memory.t()
    rows, columns = label_memory(n, seed)
    expected_rows, expected_columns = rows.clone(), columns.clone()
    labels = reference.mplp(memory, index, threshold, min_rank, cache=cache, query_rows=query_rows)
    nearest, _ = reference.nearest_neighbors(memory, index, 1, cache=cache, query_rows=query_rows)
    symmetric = reference.gather_labels(columns, index)
    neighbor = reference.gather_labels(rows, nearest.flatten())
    reference.write_labels_(expected_rows, expected_columns, index, labels)
    build.seed(seed)
    build.launches()
    blocks = (reference.block_bits(cache, threshold), threshold) if marked else ()
    mined = build.operations.mine_labels_(
        index, cache, query_rows, rows, columns, threshold, min_rank, False, *blocks
    )
    assert build.launches() == 3
    for ours, theirs in zip(
        (*mined, rows, columns), (labels, symmetric, neighbor, expected_rows, expected_columns), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_mining(cuda_on_cpu, small_constants, n, kind):
    """Labels, both inquiries as P was before, P and its transpose after; repeated indices, more samples than images."""
    memory = memory_of(kind, n, n)
    check_mining(cuda_on_cpu, memory, indices(n, 12, n), seed=n)
    check_mining(small_constants, memory, indices(n, 90, n), seed=n)
    generator = torch.Generator().manual_seed(n)
    query_rows = (torch.randint(-3, 4, (90, 6), generator=generator).float() / 4) @ memory.t()
    for marked in (True, False):
        check_mining(
            small_constants, memory, indices(n, 90, n), query_rows, seed=n, min_rank=2, marked=marked
        )


def test_two_iterations_write_over_each_other(cuda_on_cpu):
    memory = clustered_features(300, 24)
    cache = memory @ memory.t()
    rows, columns = label_memory(300, 0)
    expected = rows.clone(), columns.clone()
    for seed in range(3):
        index = indices(300, 64, seed)
        threshold = 0.7 - 0.1 * seed
        cuda_on_cpu.operations.mine_labels_(index, cache, None, rows, columns, threshold, 10, False)
        reference.write_labels_(*expected, index, reference.mplp(memory, index, threshold, cache=cache))
    assert torch.equal(rows, expected[0]) and torch.equal(columns, expected[1])
    assert torch.equal(reference.unpack_labels(columns, 300), reference.unpack_labels(rows, 300).t())


def test_indices_out_of_range_write_nothing(cuda_on_cpu):
    memory = memory_of("clustered", 50, 0)
    rows, columns = label_memory(50, 0)
    before = rows.clone(), columns.clone()
    index = torch.tensor([-1, 50, 2**40, -(2**40)])
    cuda_on_cpu.operations.mine_labels_(index, memory @ memory.t(), None, rows, columns, 0.6, 10, False)
    cuda_on_cpu.operations.write_labels_(rows, columns, index, torch.full((4, 16), 0xFF, dtype=torch.uint8))
    assert torch.equal(rows, before[0]) and torch.equal(columns, before[1])
    assert not cuda_on_cpu.operations.gather_labels(rows, index).any()
    cuda_on_cpu.operations.nearest_neighbors(index, memory @ memory.t(), None, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_nearest_neighbors(cuda_on_cpu, small_constants, n, kind):
    memory = memory_of(kind, n, n)
    cache = memory @ memory.t()
    index = indices(n, 6, n)
    for build in (cuda_on_cpu, small_constants):
        build.seed(n)
        for k in (
            (1, 5, 31)
            if build is cuda_on_cpu
            else sorted({1, 2, 5, 31, max(n - 2, 1), max(n - 1, 1), n, n + 3})
        ):
            for query_rows in (None, cache[index].roll(1, 0)):
                given = cache if query_rows is None else None
                ours = build.operations.nearest_neighbors(index, given, query_rows, k)
                theirs = reference.nearest_neighbors(memory, index, k, cache=cache, query_rows=query_rows)
                assert torch.equal(ours[0], theirs[0])
                assert torch.equal(ours[1], theirs[1])


def test_nan_is_the_nearest(cuda_on_cpu):
    rows = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    rows[1, 17] = rows[2, 0] = rows[2, 99] = torch.nan
    rows[3] = -torch.inf  # and the others all the same, but never the row itself
    index = torch.tensor([5, 17, 3, 0])
    for k, expected in ((1, [0, 0, 0, 1]), (2, [0, 0, 99, 2])):
        neighbors, similarity = cuda_on_cpu.operations.nearest_neighbors(index, None, rows, k)
        for b in (2, 3):
            assert neighbors[b, k - 1] == expected[b]
        assert torch.isnan(similarity[2]).all() and (similarity[3] == -torch.inf).all()
        rest = reference.nearest_neighbors(torch.zeros(100, 1), index[:2], k, query_rows=rows[:2])
        assert torch.equal(neighbors[:2], rest[0])


# ---- What the tests above would say of a kernel that lacks a barrier.


def outcome(check: Callable[[], object]) -> bool:
    """Whether a check passes; the emulation reports what a GPU leaves undefined as an error."""
    try:
        check()
    except (AssertionError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("barrier", ["after the count", "after the list of marked blocks", "of rows"])
def test_a_kernel_without_a_barrier_is_found(switched_barriers, without_barrier, barrier):
    memory = clustered_features(300, 24)
    index = torch.arange(0, 300, 7)
    check_mining(switched_barriers, memory, index)
    broken = without_barrier(barrier)
    assert not all(
        outcome(lambda s=seed, marked=marked: check_mining(broken, memory, index, seed=s, marked=marked))
        for seed in range(5)
        for marked in (True, False)
    )


def test_wrong_arguments_are_named(cuda_on_cpu):
    operations = cuda_on_cpu.operations
    index, cache, bits = (
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(5, 5),
        torch.zeros(5, 16, dtype=torch.uint8),
    )
    for call, message in [
        (lambda: operations.mplp(index.int(), cache, None, 0.6, 10, False), "index must be torch.int64"),
        (lambda: operations.mplp(index[None], cache, None, 0.6, 10, False), "index must have 1 dimension"),
        (
            lambda: operations.mplp(index, cache[:, :4], None, 0.6, 10, False),
            r"cache must have shape \[5, 5\]",
        ),
        (lambda: operations.mplp(index, cache.double(), None, 0.6, 10, False), "cache has the wrong type"),
        (
            lambda: operations.mplp(index, cache, None, float("inf"), 10, False),
            "threshold must be finite",
        ),
        (
            lambda: operations.mplp(index, cache, cache, 0.6, 10, False),
            r"query_rows must have shape \[2, 5\]",
        ),
        (lambda: operations.mplp(index, cache, None, 0.6, -1, False), "min_rank must be at least 0"),
        (
            lambda: operations.mplp(index, cache, None, 0.6, 10, False, bits[:, :8], 0.6),
            r"block_bits must have shape \[5, 16\]",
        ),
        (
            lambda: operations.mplp(index, cache, None, 0.6, 10, False, bits, float("nan")),
            "block_floor must be finite",
        ),
        (lambda: operations.mark_cache_blocks(cache[:4], 0.6), r"cache must have shape \[4, 4\]"),
        (lambda: operations.nearest_neighbors(index, None, None, 1), "one of cache and query_rows"),
        (lambda: operations.nearest_neighbors(index, cache, None, 0), "k must be at least 1"),
        (lambda: operations.gather_labels(bits[:, :8], index), r"bits must have shape \[5, 16\]"),
        (
            lambda: operations.write_labels_(bits, bits[1:], index, bits),
            r"column_bits must have shape \[5, 16\]",
        ),
        (lambda: operations.write_labels_(bits, bits, index, bits), r"labels must have shape \[2, 16\]"),
        (
            lambda: operations.gather_labels(torch.zeros(81, dtype=torch.uint8)[1:].view(5, 16), index),
            "bits must begin at a multiple of 16 bytes",
        ),
    ]:
        with pytest.raises((ValueError, RuntimeError), match=message):
            call()


def test_flags_of_any_byte_and_neighbors_infinitely_far(cuda_on_cpu):
    """As in test_layouts.py for the other backends."""
    flags = torch.randint(0, 4, (5, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = cuda_on_cpu.operations.pack_labels(flags.view(torch.bool))
    assert torch.equal(packed, reference.pack_labels(flags > 0))
    rows = torch.full((2, 5), -torch.inf)
    rows[1, 2], rows[0, 4] = 0.5, torch.nan
    for k in (1, 2, 5, 7):
        index, similarity = cuda_on_cpu.operations.nearest_neighbors(torch.tensor([0, 1]), None, rows, k)
        assert torch.equal(index[:, :4], torch.tensor([[4, 1, 2, 3], [2, 0, 3, 4]])[:, :k])
        assert (
            (index[:, 4:] == -1).all()
            and similarity[0, 0].isnan()
            and (similarity[:, 1:] == -torch.inf).all()
        )
