"""The momentum update of the memory and of its neighbour lists."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.precision import exact_float32, tf32_product
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import batch_of, needs_cpu_library, sizes
from tests.kernels.list_checks import check_lists, dense, symmetric_lists


def exact(memory: torch.Tensor) -> torch.Tensor:
    return memory.double() @ memory.double().t()


def drifting_batches(memory, steps, batch, seed=1):
    """Features near their rows, some nearly opposite to them; repeats come often."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        index = torch.randint(len(memory), (batch,), generator=generator)
        noise = torch.randn(batch, memory.shape[1], generator=generator)
        features = normalize(memory[index] + 0.15 * noise, dim=1)
        if step % 10 == 0:
            features[:3] = normalize(noise[:3] * 1e-3 - memory[index[:3]], dim=1)
        yield step, index, features


@pytest.mark.parametrize(("momentum", "capacity"), [
    (0.0, 60), (0.2, 12), (0.5, 200), (0.8, 60), (0.97, 12), ("rising", 60),
])  # fmt: skip
def test_lists_stay_exact_over_a_thousand_updates(momentum, capacity):
    memory = clustered_features(200, 32)
    lists = symmetric_lists(memory, capacity)
    for step, index, features in drifting_batches(memory, 1000, 16):
        alpha = 0.97 * step / 999 if momentum == "rising" else momentum
        similarity = sk.memory_similarity(features, memory) if step % 2 else None
        sk.update_memory_(memory, index, features, alpha, lists=lists, similarity=similarity)
        if step % 100 == 99:
            check_lists(lists, exact(memory), 3e-6)
    assert (memory.norm(dim=1) - 1).abs().max() < 1e-6


@needs_cpu_library  # in plain PyTorch it takes minutes
def test_ten_thousand_updates_leave_no_drift():
    """What a pair of moved rows and a pair that rises get is a product; a listed pair blends its old error away."""
    n, d, steps, batch = 60, 16, 10_000, 4
    generator, half = torch.Generator().manual_seed(0), torch.tensor(0.5)
    with torch.inference_mode():  # where writes are not counted, which would take most of the time
        memory = clustered_features(n, d)
        lists = symmetric_lists(memory, 24)
        indices = torch.randint(n, (steps, batch), generator=generator)
        noise = 0.15 * torch.randn(steps, batch, d, generator=generator)
        for step in range(steps):
            features = normalize(memory[indices[step]] + noise[step], dim=1)
            if step % 50 == 0:
                features[0] = normalize(noise[step, 0] * 1e-2 - memory[indices[step, 0]], dim=0)
            torch.ops.snnet.update_memory_lists_(memory, indices[step], features, half, *lists, None)
            if step % 1000 == 999:
                check_lists(lists, exact(memory), 2e-6)
    assert int(lists.counts.sum()) > n


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.sampled_from([1, 8, 17, 33]),
    batch=st.sampled_from([0, 1, 5, 31, 32, 33, 70]),
    seed=st.integers(0, 10**6),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 0.97, 1.0]),
    kind=st.sampled_from(["any index", "three indices", "opposite", "zero features"]),
)
def test_the_memory_follows_the_reference(kernels, n, d, batch, seed, alpha, kind):
    memory = clustered_features(n, d, seed=seed)
    memory[::7] = 0
    index = batch_of(min(n, 3) if kind == "three indices" else n, batch, seed)
    features = clustered_features(batch, d, seed=seed + 1)
    if kind == "opposite":
        features[::2] = -memory[index][::2]
    elif kind == "zero features":
        features[::3] = 0
    momentum, expected = torch.tensor(alpha), memory.clone()
    reference.update_memory_(expected, index, features, momentum)
    kernels.seed(seed)
    kernels.operations.update_memory_(memory, index, features, momentum)
    assert (memory - expected).abs().max() < 1e-6


def test_indices_that_come_again_are_one_update_after_the_other(kernels):
    memory, index = clustered_features(300, 33), torch.tensor([4, 7, 4, 299, 0, 4])
    features, momentum = clustered_features(6, 33, seed=1), torch.tensor(0.4)
    expected = memory.clone()
    reference.loop.update_memory_(expected, index, features, momentum)
    kernels.operations.update_memory_(memory, index, features, momentum)
    assert (memory - expected).abs().max() < 3e-7


def test_features_may_be_rows_of_the_memory(kernels):
    memory, index = clustered_features(50, 8), torch.tensor([1, 2, 3])
    expected = memory.clone()
    reference.update_memory_(expected, index, expected[2:5].clone(), torch.tensor(0.5))
    kernels.operations.update_memory_(memory, index, memory[2:5], torch.tensor(0.5))
    assert (memory - expected).abs().max() < 2e-7


@needs_cpu_library
@settings(max_examples=60, deadline=None)
@given(
    n=sizes,
    batch=st.integers(0, 40),
    seed=st.integers(0, 10**6),
    momentum=st.sampled_from([0.0, 0.3, 0.5, 0.97, 1.0]),
    given_similarity=st.booleans(),
    opposite=st.booleans(),
    repeats=st.booleans(),
    capacity=st.sampled_from([1, 8, 100, 2000]),
)
def test_memory_and_lists_follow_the_reference(
    n, batch, seed, momentum, given_similarity, opposite, repeats, capacity
):
    memory = clustered_features(n, 8, seed=seed)
    memory[::7] = 0
    index = batch_of(min(n, 3) if repeats else n, batch, seed)
    features = clustered_features(batch, 8, seed=seed + 1)
    if opposite:
        features[::2] = -memory[index][::2]
    lists = symmetric_lists(memory, capacity)
    similarity = features @ memory.t() if given_similarity else None
    expected, cache = memory.clone(), memory @ memory.t()
    sk.update_memory_(memory, index, features, momentum, lists=lists, similarity=similarity)
    alpha = torch.tensor(momentum)
    reference.update_memory_(expected, index, features, alpha, cache=cache, similarity=similarity)
    assert (memory - expected).abs().max() < 1e-6
    allowed = (cache - expected.double() @ expected.double().t()).abs().max()
    check_lists(lists, memory.double() @ memory.double().t(), float(allowed) + 2e-6)


@pytest.mark.parametrize("momentum", [0.2, 0.5, 0.9])
def test_the_matrix_of_the_reference_stays_exact(momentum):
    """The oracle of the lists: the recurrence over the whole of S."""
    memory = clustered_features(100, 16)
    cache = memory @ memory.t()
    for step, index, features in drifting_batches(memory, 100, 8):
        similarity = features @ memory.t() if step % 2 else None
        reference.update_memory_(memory, index, features, momentum, cache=cache, similarity=similarity)
        assert torch.equal(cache[index], cache[:, index].t())
    assert (cache - exact(memory)).abs().max() < 3e-6


def test_opposite_features_cancel_and_stay_exact():
    """At α = 1/2 the blend nearly vanishes: the recurrence would divide by almost nothing."""
    memory = clustered_features(100, 16)
    index = torch.arange(0, 100, 7)
    features = normalize(-memory[index] + 1e-4 * torch.randn(len(index), 16), dim=1)
    for capacity in (10, 100):
        own, lists = memory.clone(), symmetric_lists(memory, capacity)
        sk.update_memory_(own, index, features, 0.5, lists=lists)
        check_lists(lists, exact(own), 1e-6)


def test_repeated_indices_are_applied_in_batch_order():
    generator = torch.Generator().manual_seed(0)
    memory = clustered_features(40, 8)
    expected, lists = memory.clone(), symmetric_lists(memory, 20)
    index = torch.tensor([3, 5, 3, 3, 5, 7])
    features = normalize(torch.randn(6, 8, generator=generator), dim=1)
    reference.loop.update_memory_(expected, index, features, 0.4)
    sk.update_memory_(memory, index, features, 0.4, lists=lists)
    assert (memory - expected).abs().max() < 2e-7
    check_lists(lists, exact(memory), 1e-6)
    swapped = expected.clone()
    reference.loop.update_memory_(swapped, index.flip(0), features.flip(0), 0.4)
    assert (swapped - expected).abs().max() > 0.01  # the order matters


@needs_cpu_library
def test_an_index_that_comes_often_costs_few_products():
    """Each repeat multiplies all entries behind it at once, so twice the repeats allocate twice as often."""
    allocations = []
    for batch in (30, 60):
        memory = clustered_features(50, 16)
        lists = symmetric_lists(memory, 50)
        index, features = torch.zeros(batch, dtype=torch.int64), clustered_features(batch, 16, seed=1)
        expected = memory.clone()
        reference.loop.update_memory_(expected, index, features, 0.4)
        with torch.autograd.profiler.profile() as profile:
            sk.update_memory_(memory, index, features, 0.4, lists=lists)
        allocations.append(sum(event.name == "aten::new_empty" for event in profile.function_events or ()))
        torch.testing.assert_close(memory, expected, atol=1e-6, rtol=0)
        check_lists(lists, exact(memory), 1e-6)
    assert 0 < allocations[1] <= 2 * allocations[0]


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
    lists = symmetric_lists(memory, 5)
    sk.update_memory_(memory, torch.tensor([2]), torch.zeros(1, 4), 0.3, lists=lists)
    assert not memory.any() and not lists.values.any() and lists.counts.tolist() == [5] * 5


def test_rows_outside_the_batch_are_untouched():
    memory = clustered_features(50, 8)
    before = memory.clone()
    sk.update_memory_(memory, torch.tensor([10]), clustered_features(1, 8, seed=3), 0.5)
    changed = (memory != before).any(1)
    assert changed.nonzero().flatten().tolist() == [10]


def test_empty_batch_changes_nothing():
    memory = clustered_features(10, 4)
    before = memory.clone()
    sk.update_memory_(memory, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 0.5)
    assert torch.equal(memory, before)


def test_global_precision_flags_change_nothing():
    """bf16 products, TF32 and autocast asked for around the operations do not reach them."""
    memory, index = clustered_features(400, 32), torch.arange(0, 400, 9)
    features = clustered_features(len(index), 32, seed=2)
    labels = reference.identity_labels(index, 400)

    def run() -> list[torch.Tensor]:
        own, lists, live = memory.clone(), symmetric_lists(memory, 60), features.clone().requires_grad_()
        sk.update_memory_(own, index, features, 0.5, lists=lists)
        loss = sk.fused_mutual_label_loss(live, memory, [labels], [1.0], kind="l2")
        loss.backward()
        found = [sk.memory_similarity(features, memory), sk.mplp(memory, index)]
        return [own, *lists, loss, live.grad, *found, *sk.nearest_neighbors(memory, index, 3)]

    expected = run()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert (features @ memory.t()).dtype == torch.bfloat16
            assert all(torch.equal(one, other) for one, other in zip(run(), expected, strict=True))
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


@pytest.mark.parametrize("wide", [torch.backends, torch.backends.mkldnn], ids=["every backend", "mkldnn"])
def test_a_flag_that_follows_a_wider_one_goes_on_following_it(wide):
    matmul, others = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = matmul.fp32_precision, others.fp32_precision
    matmul.fp32_precision = others.fp32_precision = "none"
    try:
        wide.fp32_precision = "bf16"
        with exact_float32(torch.device("cpu")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "bf16"
        wide.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
        with exact_float32(torch.device("cpu")):
            tf32_product(torch.eye(2), torch.eye(2))
    finally:
        wide.fp32_precision = "none"
        after = matmul.fp32_precision, others.fp32_precision
        matmul.fp32_precision, others.fp32_precision = before
    assert after == ("none", "none")


def update_with_lists(memory, index, features, alpha, lists):
    if lists is None:
        reference.update_memory_(memory, index, features, alpha)
    else:
        reference.update_memory_lists_(memory, index, features, alpha, lists)


IMPLEMENTATIONS = {
    "compiled": lambda *arguments: sk.update_memory_(*arguments[:4], lists=arguments[4]),
    "reference": update_with_lists,
}


@pytest.mark.parametrize("update", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("capacity", [20, 140])
def test_rows_that_are_not_finite_are_not_written(update, alpha, capacity):
    """Alone, between good ones of the same index, and all of an index; memory and lists alike."""
    memory = clustered_features(140, 8)
    if alpha == 0:
        memory[[4, 130]] = torch.nan  # what stood there does not count
    index = torch.tensor([4, 9, 4, 77, 9, 4, 100, 130])
    features = clustered_features(8, 8, seed=1)
    features[2, 3], features[1, 0], features[4, -1] = torch.nan, torch.inf, -torch.inf
    features[6] = 3e38 if alpha < 1 else torch.nan  # too long for a float32
    good = torch.tensor([0, 3, 5, 7])
    lists = symmetric_lists(memory, capacity)
    expected, before, listed = memory.clone(), memory.clone(), dense(lists)
    reference.loop.update_memory_(expected, index, features, alpha)
    alone = memory.clone()
    update(alone, index, features, alpha, None)
    update(memory, index, features, alpha, lists)
    assert torch.equal(alone, memory)
    assert torch.equal(memory[[9, 100]], before[[9, 100]])
    assert (memory - expected).abs().max() < 1e-6 and memory.isfinite().all()
    check_lists(lists, exact(memory), 1e-6)
    kept = torch.ones(140, dtype=torch.bool).index_fill(0, index[good], False)
    still = dense(lists)[kept][:, kept]
    were = torch.where(still.isnan(), torch.nan, listed[kept][:, kept])  # what found no room has gone
    assert torch.equal(still.nan_to_num(9.0), were.nan_to_num(9.0))
    nothing = [table.clone() for table in lists]
    update(memory, index[[2, 6]], features[[2, 6]], alpha, lists)
    assert all(torch.equal(one, other) for one, other in zip(lists, nothing, strict=True))


@pytest.mark.parametrize("kind", ["mmcl", "l2"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_step_that_is_not_finite_is_over_when_it_is_over(kind, alpha):
    """As a step that a GradScaler skips: its loss is NaN, no later one is."""
    head = sk.SNNetHead(120, 8, neighbors=30, loss_kind=kind)
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
    assert head.memory.features.isfinite().all()
    check_lists(head.memory.lists.tables, exact(head.memory.features), 1e-6)
