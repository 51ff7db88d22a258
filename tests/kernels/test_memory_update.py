"""The memory update and the cache recurrence."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.precision import exact_float32
from snnet_kernels.testing import clustered_features


def error(cache: torch.Tensor, memory: torch.Tensor) -> float:
    exact = memory.double() @ memory.double().t()
    return (cache - exact).abs().max().item()


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.5, 0.8, 0.97, "rising"])
def test_cache_stays_exact_over_a_thousand_updates(momentum):
    n, d, batch = 200, 32, 16
    generator = torch.Generator().manual_seed(1)
    memory = clustered_features(n, d)
    cache = sk.build_similarity_cache(memory)
    worst = 0.0
    for step in range(1000):
        index = torch.randint(n, (batch,), generator=generator)  # repeats come often
        noise = torch.randn(batch, d, generator=generator)
        features = normalize(memory[index] + 0.15 * noise, dim=1)
        if step % 10 == 0:
            features[:3] = normalize(noise[:3] * 1e-3 - memory[index[:3]], dim=1)  # nearly opposite
        alpha = 0.97 * step / 999 if momentum == "rising" else momentum
        similarity = sk.memory_similarity(features, memory) if step % 2 else None
        sk.update_memory_(memory, index, features, alpha, cache=cache, similarity=similarity)
        if step % 100 == 99:
            worst = max(worst, error(cache, memory))
    assert worst <= 3e-6
    assert (memory.norm(dim=1) - 1).abs().max() < 1e-6


def test_opposite_features_cancel_and_stay_exact():
    """At α = 1/2 the blend nearly vanishes: the recurrence would divide by almost nothing."""
    memory = clustered_features(100, 16)
    cache = sk.build_similarity_cache(memory)
    index = torch.arange(0, 100, 7)
    features = normalize(-memory[index] + 1e-4 * torch.randn(len(index), 16), dim=1)
    sk.update_memory_(memory, index, features, 0.5, cache=cache)
    assert error(cache, memory) < 1e-6


def test_repeated_indices_are_applied_in_batch_order():
    generator = torch.Generator().manual_seed(0)
    memory = clustered_features(40, 8)
    expected, cache = memory.clone(), sk.build_similarity_cache(memory)
    index = torch.tensor([3, 5, 3, 3, 5, 7])
    features = normalize(torch.randn(6, 8, generator=generator), dim=1)
    reference.loop.update_memory_(expected, index, features, 0.4)
    sk.update_memory_(memory, index, features, 0.4, cache=cache)
    assert (memory - expected).abs().max() < 2e-7
    assert error(cache, memory) < 1e-6
    swapped = expected.clone()
    reference.loop.update_memory_(swapped, index.flip(0), features.flip(0), 0.4)
    assert (swapped - expected).abs().max() > 0.01  # the order matters


def test_bounds_of_the_momentum():
    memory = clustered_features(30, 8)
    features, index = clustered_features(4, 8, seed=9), torch.tensor([1, 2, 3, 4])
    replaced, kept = memory.clone(), memory.clone()
    sk.update_memory_(replaced, index, features, 0.0)
    assert (replaced[index] - features).abs().max() < 1e-6
    sk.update_memory_(kept, index, features, torch.tensor(1.0))
    assert (kept - memory).abs().max() < 1e-6
    for bad in (-0.1, 1.1, float("nan"), torch.tensor(2.0)):
        with pytest.raises(ValueError, match="momentum must lie in"):
            sk.update_memory_(kept, index, features, bad)


def test_zero_vectors_stay_zero():
    memory = torch.zeros(5, 4)
    cache = sk.build_similarity_cache(memory)
    sk.update_memory_(memory, torch.tensor([2]), torch.zeros(1, 4), 0.3, cache=cache)
    assert not memory.any() and not cache.any()


def test_rows_outside_the_batch_are_untouched():
    memory = clustered_features(50, 8)
    before = memory.clone()
    sk.update_memory_(memory, torch.tensor([10]), clustered_features(1, 8, seed=3), 0.5)
    changed = (memory != before).any(1)
    assert changed.nonzero().flatten().tolist() == [10]


def test_cache_is_symmetric_where_it_was_written():
    memory = clustered_features(80, 8)
    cache = sk.build_similarity_cache(memory)
    index = torch.tensor([1, 4, 70, 4])
    sk.update_memory_(memory, index, clustered_features(4, 8, seed=5), 0.5, cache=cache)
    assert torch.equal(cache[index], cache[:, index].t())


def test_empty_batch_changes_nothing():
    memory = clustered_features(10, 4)
    before = memory.clone()
    sk.update_memory_(memory, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 0.5)
    assert torch.equal(memory, before)


def test_global_precision_flags_change_nothing():
    """bf16 products, TF32 and autocast asked for around the operations do not reach them."""
    memory = clustered_features(300, 64)
    features = clustered_features(8, 64, seed=2)
    expected, cache = sk.memory_similarity(features, memory), sk.build_similarity_cache(memory)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            plain = features @ memory.t()
            assert plain.dtype == torch.bfloat16
            assert torch.equal(sk.memory_similarity(features, memory), expected)
            assert torch.equal(sk.build_similarity_cache(memory), cache)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_blocks_of_several_threads_leave_the_flags_as_they_were():
    """A block that begins inside another and outlives it must not take the switched flags for the caller's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    second_inside, first_left = threading.Event(), threading.Event()

    def outlive() -> str:
        with exact_float32(torch.device("cpu")):
            second_inside.set()
            assert first_left.wait(30)
            return torch.get_float32_matmul_precision()

    try:
        with ThreadPoolExecutor(1) as pool:
            with exact_float32(torch.device("cpu")):
                # Its caller has set the flags after the first block switched them off.
                torch.set_float32_matmul_precision("medium")
                inside = pool.submit(outlive)
                assert second_inside.wait(30)
            first_left.set()
            assert inside.result() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


IMPLEMENTATIONS = {"compiled": sk.update_memory_, "reference": reference.update_memory_}


@pytest.mark.parametrize("update", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_rows_that_are_not_finite_are_not_written(update, alpha):
    """Alone, between good ones of the same index, and all of an index; memory, cache and marks alike."""
    memory = clustered_features(140, 8)
    if alpha == 0:
        memory[[4, 130]] = torch.nan  # what stood there does not count
    index = torch.tensor([4, 9, 4, 77, 9, 4, 100, 130])
    features = clustered_features(8, 8, seed=1)
    features[2, 3], features[1, 0], features[4, -1] = torch.nan, torch.inf, -torch.inf
    features[6] = 3e38 if alpha < 1 else torch.nan  # too long for a float32
    good = torch.tensor([0, 3, 5, 7])
    cache = memory @ memory.t()
    blocks = sk.mark_cache_blocks(cache, 0.3)
    expected, before, cache_before = memory.clone(), memory.clone(), cache.clone()
    bits = blocks.bits.clone()
    reference.loop.update_memory_(expected, index, features, alpha)
    alone = memory.clone()
    update(alone, index, features, alpha)
    update(memory, index, features, alpha, cache=cache, blocks=blocks)
    assert torch.equal(alone, memory)
    assert torch.equal(memory[[9, 100]], before[[9, 100]])
    assert (memory - expected).abs().max() < 1e-6 and memory.isfinite().all()
    assert error(cache, memory) < 1e-6
    kept = torch.ones(140, dtype=torch.bool).index_fill(0, index[good], False)
    assert torch.equal(cache[kept][:, kept], cache_before[kept][:, kept])
    fresh = sk.mark_cache_blocks(cache, 0.3).bits
    assert not (fresh & ~blocks.bits).any()
    assert torch.equal(blocks.bits[9] & bits[9], bits[9])  # in a skipped row nothing is cleared
    nothing = cache.clone()
    update(memory, index[[2, 6]], features[[2, 6]], alpha, cache=cache, blocks=blocks)
    assert torch.equal(cache, nothing)


@pytest.mark.parametrize("kind", ["mmcl", "l2"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_step_that_is_not_finite_is_over_when_it_is_over(kind, alpha):
    """As a step that a GradScaler skips: its loss is NaN, no later one is."""
    head = sk.SNNetHead(120, 8, cache=True, loss_kind=kind)
    head.initialize_(clustered_features(120, 8))
    head.momentum = alpha
    index = torch.arange(0, 120, 10)
    features = clustered_features(12, 8, seed=1)
    bad = features.clone()
    bad[5] = torch.nan
    losses = []
    for live in (bad, features, features):
        losses.append(head(live, index).item())
        head.update_(index, live)
    assert losses[0] != losses[0] and all(0 < loss < 100 for loss in losses[1:])
    assert head.memory.features.isfinite().all() and error(head.memory.cache, head.memory.features) < 1e-6
