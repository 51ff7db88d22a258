"""The CUDA update of memory and cache, run on CPU tensors by the emulation, against the reference and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from snnet_kernels import reference
from snnet_kernels.testing import clustered_features


@pytest.fixture(scope="module")
def update(cuda_on_cpu):
    """The operation; a cache has marked blocks, and what becomes of the marks is looked at in every test."""
    operation, floor = cuda_on_cpu.operations.update_memory_, 0.3

    def with_marks(memory, index, features, momentum, cache, similarity):
        if cache is None:
            return operation(memory, index, features, momentum, None, None)
        bits = reference.block_bits(cache, floor)
        before = bits.clone()
        operation(memory, index, features, momentum, cache, similarity, bits, floor)
        written = index[(index >= 0) & (index < len(memory))]
        marks_are_what_the_writes_set(bits, before, cache, written, floor)

    return with_marks


def indices(n: int, batch: int, seed: int) -> Tensor:
    return torch.randint(n, (batch,), generator=torch.Generator().manual_seed(seed))


def distinct(n: int, batch: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:batch]


def largest_error(cache: Tensor, memory: Tensor) -> float:
    return float((cache.double() - memory.double() @ memory.double().t()).abs().max())


def marks_are_what_the_writes_set(
    bits: Tensor, before: Tensor, cache: Tensor, index: Tensor, floor: float
) -> None:
    """New rows as they are; other rows as before and the blocks that hold a new value above the floor."""
    expected = before.clone()
    reference.cache_blocks.update_cache_blocks_(reference.CacheBlocks(expected, floor), cache, index.unique())
    assert torch.equal(bits, expected)
    assert not (reference.block_bits(cache, floor) & ~bits).any()  # none lacks


@settings(max_examples=40, deadline=None)
@given(
    # Around a tile of 32 places times 128 columns.
    n=st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 129, 200, 257, 300])),
    d=st.sampled_from([1, 8, 17, 33]),
    batch=st.sampled_from([0, 1, 5, 31, 32, 33, 40, 70]),
    seed=st.integers(0, 10**6),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 0.97, 1.0]),
    kind=st.sampled_from(["any index", "three indices", "opposite", "zero features"]),
)
def test_memory_and_cache_follow_the_reference(cuda_on_cpu, update, n, d, batch, seed, alpha, kind):
    memory = clustered_features(n, d, seed=seed)
    memory[::7] = 0
    index = indices(min(n, 3) if kind == "three indices" else n, batch, seed)
    features = clustered_features(batch, d, seed=seed + 1)
    if kind == "opposite":
        features[::2] = -memory[index][::2]
    elif kind == "zero features":
        features[::3] = 0
    similarity = features @ memory.t()
    cache, momentum = memory @ memory.t(), torch.tensor(alpha)
    expected, expected_cache = memory.clone(), cache.clone()
    reference.update_memory_(expected, index, features, momentum, cache=expected_cache, similarity=similarity)
    before = cache.clone()
    alone = memory.clone()
    floor = [-2.0, 0.0, 0.4, 0.6][seed % 4]
    bits = reference.block_bits(cache, floor)
    old = bits.clone()
    cuda_on_cpu.seed(seed)
    cuda_on_cpu.operations.update_memory_(memory, index, features, momentum, cache, similarity, bits, floor)
    marks_are_what_the_writes_set(bits, old, cache, index, floor)
    assert (memory - expected).abs().max() < 1e-6
    assert largest_error(cache, memory) <= largest_error(expected_cache, expected) + 1e-6
    assert torch.equal(cache[index], cache[:, index].t())
    others = torch.ones(n, dtype=torch.bool)
    others[index] = False
    assert torch.equal(cache[others][:, others], before[others][:, others])
    update(alone, index, features, momentum, None, None)
    assert torch.equal(alone, memory)


def test_an_index_that_comes_once_has_the_arithmetic_of_the_recurrence(update):
    n, d, batch, alpha = 300, 24, 45, torch.tensor(0.37)
    memory, index = clustered_features(n, d), distinct(n, batch)
    features = clustered_features(batch, d, seed=1)
    similarity = features @ memory.t()
    cache = memory @ memory.t()
    cache = cache.tril() + cache.tril(-1).t()
    beta = 1 - alpha
    blended = alpha * memory[index] + beta * features
    lengths = blended.double().square().sum(1).sqrt().float()
    rows = (alpha * cache[index] + beta * similarity) / lengths[:, None]
    expected = cache.clone()
    expected[index] = rows
    expected[:, index] = rows.t()
    update(memory, index, features, alpha, cache, similarity)
    assert torch.equal(memory[index], blended / lengths[:, None])
    pairs = cache[index][:, index]
    assert torch.equal(pairs, pairs.t())
    assert (pairs - memory[index].double() @ memory[index].double().t()).abs().max() < 1.5e-7
    expected[index[:, None], index] = pairs
    assert torch.equal(cache, expected)


def test_the_batch_is_symmetric_where_the_cache_was_not(update):
    memory, index = clustered_features(140, 8), distinct(140, 40)
    features = clustered_features(40, 8, seed=1)
    cache = memory @ memory.t() + 1e-7 * torch.randn(140, 140, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(cache[index], cache[:, index].t())
    update(memory, index, features, torch.tensor(0.4), cache, features @ memory.t())
    assert torch.equal(cache[index], cache[:, index].t())
    assert largest_error(cache, memory) < 1e-6


def test_only_the_words_of_progress_are_cleared(cuda_on_cpu):
    """One fill of 12 bytes and one kernel; the rest of the scratch is written before it is read."""
    n, batch = 40, 9
    memory, features = clustered_features(n, 8), clustered_features(batch, 8, seed=1)
    arguments = (
        memory,
        distinct(n, batch),
        features,
        torch.tensor(0.4),
        memory @ memory.t(),
        features @ memory.t(),
    )
    cuda_on_cpu.launches()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        cuda_on_cpu.operations.update_memory_(*arguments, None, 0.0)
    assert cuda_on_cpu.launches() == 2
    allocations = [event.name for event in profile.events() if event.name.startswith("aten::new_")]
    assert allocations == ["aten::new_empty"]


@pytest.mark.parametrize("times", [2, 3, 16, 17, 40])
def test_one_index_many_times(update, times):
    """Up to 16 by the closed form, more by products."""
    memory, features = clustered_features(150, 12), clustered_features(times + 4, 12, seed=1)
    index = torch.tensor([7, 149, *[33] * times, 7, 0])
    expected = memory.double()
    reference.loop.update_memory_(expected, index, features.double(), 0.6)
    cache = memory @ memory.t()
    update(memory, index, features, torch.tensor(0.6), cache, features @ memory.t())
    assert (memory - expected).abs().max() < 3e-7
    assert (cache - expected @ expected.t()).abs().max() < 1e-6
    assert torch.equal(cache[index], cache[:, index].t())


def test_rows_whose_error_would_grow_are_products(update):
    """Both members of a pair, a member alone, and a length that falls below alpha in the middle of a chain."""
    memory, index = clustered_features(200, 40), torch.tensor([3, 150, 9, 60, 9, 61])
    features = clustered_features(6, 40, seed=1)
    features[0], features[1] = normalize(features[0] - 4 * memory[3], dim=0), -memory[150] * 0.9
    features[2] = normalize(features[2] - 6 * memory[9], dim=0)
    alpha = torch.tensor(0.7)
    wrong = torch.full((200, 200), 5.0)  # what the recurrence would start from
    cache = memory @ memory.t()
    fresh = [3, 9, 150]
    cache[fresh] = wrong[fresh]
    update(memory, index, features, alpha, cache, features @ memory.t())
    exact = memory.double() @ memory.double().t()
    assert (cache[fresh] - exact[fresh]).abs().max() < 2e-7
    assert torch.equal(cache[fresh], cache[:, fresh].t())
    assert (cache[[60, 61]][:, [60, 61]] - exact[[60, 61]][:, [60, 61]]).abs().max() < 1e-6


def test_products_of_long_rows_round_little(update):
    """A batch whose rows are all products, of rows too long for shared memory."""
    memory, index = clustered_features(40, 4200), torch.arange(0, 40, 3)
    cache = torch.zeros(40, 40)
    features = -memory[index] * 0.5
    update(memory, index, features, torch.tensor(0.9), cache, features @ memory.t())
    exact = memory.double() @ memory.double().t()
    assert (cache[index] - exact[index]).abs().max() < 3e-7
    assert (memory.norm(dim=1) - 1).abs().max() < 2e-7


@pytest.mark.parametrize(("n", "batch"), [(90, 600), (900, 600)])
def test_a_batch_beyond_one_block_of_threads(update, n, batch):
    memory, index = clustered_features(n, 6), indices(n, batch, 0)
    features = clustered_features(batch, 6, seed=1)
    expected = memory.double()
    reference.loop.update_memory_(expected, index, features.double(), 0.3)
    cache = memory @ memory.t()
    update(memory, index, features, torch.tensor(0.3), cache, features @ memory.t())
    assert (memory - expected).abs().max() < 1e-6
    assert largest_error(cache, memory) < 2e-6
    assert torch.equal(cache[index], cache[:, index].t())


def test_index_values_out_of_range_are_skipped(update):
    memory, features = clustered_features(64, 8), clustered_features(7, 8, seed=1)
    index = torch.tensor([5, -1, 64, 5, 2**40, 0, -(2**62)])
    valid = torch.tensor([0, 3, 5])
    similarity = features @ memory.t()
    cache, momentum = memory @ memory.t(), torch.tensor(0.5)
    expected, expected_cache = memory.clone(), cache.clone()
    update(memory, index, features, momentum, cache, similarity)
    update(
        expected,
        index[valid],
        features[valid],
        momentum,
        expected_cache,
        similarity[valid],
    )
    assert torch.equal(memory, expected) and torch.equal(cache, expected_cache)


def test_features_may_be_rows_of_the_memory(update):
    memory, index = clustered_features(50, 8), torch.tensor([1, 2, 3])
    expected = memory.clone()
    reference.update_memory_(expected, index, expected[2:5].clone(), torch.tensor(0.5))
    cache = memory @ memory.t()
    alone = memory.clone()
    update(memory, index, memory[2:5], torch.tensor(0.5), cache, cache[2:5])
    update(alone, index, alone[2:5], torch.tensor(0.5), None, None)
    assert (memory - expected).abs().max() < 2e-7 and torch.equal(alone, memory)
    assert largest_error(cache, memory) < 1e-6


@pytest.mark.parametrize("d", [8, 4300])  # with the blend in shared memory, and made twice
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_rows_that_are_not_finite_are_not_written(update, d, alpha):
    """Alone, between good ones of the same index, and all of an index; what is skipped leaves its cells alone."""
    memory = clustered_features(140, d)
    if alpha == 0:
        memory[[4, 130]] = torch.nan  # what stood there does not count
    index = torch.tensor([4, 9, 4, 77, 9, 4, 100, 130])
    features = clustered_features(8, d, seed=1)
    features[2, 3], features[1, 0], features[4, -1], features[6] = torch.nan, torch.inf, -torch.inf, 3e38
    good = torch.tensor([0, 3, 5, 7])
    cache, momentum = memory @ memory.t(), torch.tensor(alpha)
    expected, expected_cache, before = memory.clone(), cache.clone(), memory.clone()
    for at in good.tolist():
        one = slice(at, at + 1)
        reference.update_memory_(expected, index[one], features[one], momentum, cache=expected_cache)
    alone = memory.clone()
    update(alone, index, features, momentum, None, None)
    update(memory, index, features, momentum, cache, features @ memory.t())
    assert torch.equal(alone, memory)
    assert torch.equal(memory[[9, 100]], before[[9, 100]])
    assert (memory - expected).abs().max() < 1e-6
    assert (cache - expected_cache).abs().max() < 1e-6
    kept = torch.ones(140, dtype=torch.bool).index_fill(0, index[good], False)
    assert torch.equal(cache[kept][:, kept], expected_cache[kept][:, kept])


def test_one_kernel_and_no_dependence_on_the_order_of_blocks(cuda_on_cpu, update):
    memory, index = clustered_features(400, 16), indices(100, 60, 0)
    features = clustered_features(60, 16, seed=1)
    features[:9] = -memory[index[:9]]
    similarity = features @ memory.t()
    results = []
    for seed in range(4):
        own, cache = memory.clone(), memory @ memory.t()
        cuda_on_cpu.seed(seed)
        cuda_on_cpu.launches()
        update(own, index, features, torch.tensor(0.45), cache, similarity)
        assert cuda_on_cpu.launches() == 2  # its words of progress cleared, one kernel
        results.append((own, cache))
    for own, cache in results[1:]:
        assert torch.equal(own, results[0][0]) and torch.equal(cache, results[0][1])


def test_the_cache_stays_exact_over_many_updates(update):
    n, batch = 30, 3
    generator = torch.Generator().manual_seed(0)
    memory = clustered_features(n, 16)
    cache = memory @ memory.t()
    for step in range(1500):
        index = torch.randperm(n, generator=generator)[:batch]
        if step % 5 == 0:
            index[1:] = index[0]  # three times the same
        noise = torch.randn(batch, 16, generator=generator)
        features = normalize(memory[index] + 0.3 * noise, dim=1)
        alpha = torch.tensor(0.97 * (step % 100) / 99)
        update(memory, index, features, alpha, cache, features @ memory.t())
    assert largest_error(cache, memory) < 3e-6
    assert torch.equal(cache, cache.t())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": torch.zeros(30, 8).t()}, "memory must be contiguous"),
        ({"index": torch.zeros(3, dtype=torch.int32)}, "index must be torch.int64"),
        ({"features": torch.zeros(3, 9)}, "features must have shape"),
        ({"momentum": torch.zeros(1)}, "momentum must be a 0-d float32 tensor"),
        ({"cache": torch.zeros(8, 9)}, "cache must have shape"),
        ({"similarity": None}, "similarity is given where a cache is"),
        ({"similarity": torch.zeros(3, 9)}, "similarity must have shape"),
        ({"block_bits": torch.zeros(8, 8, dtype=torch.uint8)}, "block_bits must have shape"),
        ({"cache": None, "similarity": None}, "block_bits are given without a cache"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(cuda_on_cpu, change, message):
    arguments = {
        "memory": torch.zeros(8, 30),
        "index": torch.zeros(3, dtype=torch.int64),
        "features": torch.zeros(3, 30),
        "momentum": torch.tensor(0.5),
        "cache": torch.zeros(8, 8),
        "similarity": torch.zeros(3, 8),
        "block_bits": torch.zeros(8, 16, dtype=torch.uint8),
        "block_floor": 0.6,
        **change,
    }
    with pytest.raises((ValueError, RuntimeError), match=message):
        cuda_on_cpu.operations.update_memory_(*arguments.values())


def test_a_missing_barrier_is_noticed(update, switched_barriers, without_barrier):
    """Without the barrier before the columns, a warp writes what the others have not yet computed."""
    memory, index = clustered_features(200, 8), distinct(200, 40)
    features = clustered_features(40, 8, seed=1)
    similarity = features @ memory.t()

    def updated(operation) -> Tensor:
        cache = memory @ memory.t()
        operation(memory.clone(), index, features, torch.tensor(0.5), cache, similarity)
        return cache

    right = updated(update)
    assert torch.equal(updated(switched_barriers.operations.update_memory_), right)
    assert not torch.equal(updated(without_barrier("before the columns").operations.update_memory_), right)
