"""The compiled CPU library against the reference: labels and indices to the bit, the rest to float32 rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import (
    batch_of,
    exact_memory_of,
    exact_rows,
    memory_of,
    needs_cpu_library,
)
from tests.kernels.list_checks import check_lists, symmetric_lists

pytestmark = needs_cpu_library
OPS = torch.ops.snnet
KINDS = ["clustered", "exact", "same", "zero rows", "duplicates", "unnormalised"]
# Around a 64-float block, a 512-float step, a 128-bit label word, and sizes with every kind of rest.
sizes = st.one_of(
    st.integers(1, 40),
    st.sampled_from([63, 64, 65, 127, 128, 129, 511, 513, 1000, 1999]),
    st.integers(41, 700),
)


def assert_tail_is_zero(labels: torch.Tensor, n: int) -> None:
    everything = reference.unpack_labels(labels, 8 * labels.shape[1])
    assert int(everything[:, n:].sum()) == 0


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
    lists, cache = symmetric_lists(memory, capacity), memory @ memory.t()
    given_rows = exact_rows(batch, 6, seed + 1) @ memory.t() if rows else None
    labels = sk.mplp(memory, index, threshold, min_rank, lists=lists, query_rows=given_rows)
    expected = reference.mplp(memory, index, threshold, min_rank, cache=cache, query_rows=given_rows)
    assert torch.equal(labels, expected)
    assert_tail_is_zero(labels, n)
    for k in (1, 2, 7, n + 2):
        found = sk.nearest_neighbors(memory, index, k, lists=lists, query_rows=given_rows)
        wanted = reference.nearest_neighbors(memory, index, k, cache=cache, query_rows=given_rows)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


@settings(max_examples=60, deadline=None)
@given(
    n=sizes,
    batch=st.integers(0, 80),
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([-50.0, 0.0, 0.0625, 0.5625, 50.0]),
    kind=st.sampled_from(KINDS[1:]),
    rows=st.booleans(),
)
def test_streaming_equals_the_reference_where_products_are_exact(n, batch, seed, threshold, kind, rows):
    memory, index = memory_of(kind, n, 6, seed), batch_of(n, batch, seed)
    given_rows = exact_rows(batch, 6, seed + 1) @ memory.t() if rows else None
    labels = sk.mplp(memory, index, threshold, query_rows=given_rows)
    expected = reference.mplp(memory, index, threshold, query_rows=given_rows, cache=memory @ memory.t())
    assert torch.equal(labels, expected)
    neighbors, similarity = sk.nearest_neighbors(memory, index, 5)
    expected_neighbors, expected_similarity = reference.nearest_neighbors(memory, index, 5)
    assert torch.equal(neighbors, expected_neighbors)
    assert torch.equal(similarity, expected_similarity)


def decisive_samples(memory: torch.Tensor, index: torch.Tensor, margin: float) -> torch.Tensor:
    """bool [B]: every comparison of the label prediction has at least ``margin`` between its sides in float64."""
    exact = memory.double() @ memory.double().t()
    bar = float(torch.tensor(0.6))
    decisive = []
    for i in index.tolist():
        gaps = [(exact[i] - bar).abs().min()]
        candidates = (exact[i] > bar).nonzero().flatten()
        values = exact[i, candidates].sort().values
        gaps += [values.diff().abs().min()] if len(values) > 1 else []
        anchor = candidates[exact[i, candidates].argmax()]
        for p in candidates.tolist():
            difference = (exact[p] - exact[p, anchor]).abs()
            difference[anchor] = torch.inf
            gaps.append(difference.min())
        decisive.append(float(min(gaps)) > margin)
    return torch.tensor(decisive)


@pytest.mark.parametrize(("n", "d"), [(1500, 48), (2000, 200)])
@pytest.mark.parametrize("source", ["memory", "feature"])
def test_streaming_labels_of_clustered_features(n, d, source):
    memory, index = clustered_features(n, d), torch.arange(0, n, 17)
    cache = memory.double() @ memory.double().t()
    decisive = decisive_samples(memory, index, 2e-6)
    assert decisive.float().mean() > 0.5
    rows = (memory[index] @ memory.t()) if source == "feature" else None
    labels = sk.unpack_labels(sk.mplp(memory, index, query_rows=rows), n)
    expected = sk.unpack_labels(reference.mplp(memory.double(), index, cache=cache), n)
    assert torch.equal(labels[decisive], expected[decisive])
    candidates = cache[index] > 0.6
    assert 1 - (expected & candidates).sum() / candidates.sum() > 0.2  # the cycle check decides something


def test_streaming_counts_what_a_neighborhood_leaves_out():
    """Anchors with more near images than are looked at first, at similarities where the prune leaves nothing out."""
    generator = torch.Generator().manual_seed(0)
    centre = normalize(torch.randn(1, 64, generator=generator), dim=1)
    memory = normalize(centre + 0.11 * torch.randn(1800, 64, generator=generator), dim=1)
    index = torch.arange(0, 1800, 60)
    cache = memory @ memory.t()
    for threshold in (0.6, 0.65):
        labels = sk.unpack_labels(sk.mplp(memory, index, threshold), 1800)
        expected = sk.unpack_labels(reference.mplp(memory, index, threshold, cache=cache), 1800)
        assert expected.sum(1).float().mean() > 30
        assert (labels != expected).any(1).sum() <= 1  # a candidate within rounding of a bar


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


def test_memory_alone():
    memory, index = clustered_features(300, 33), torch.tensor([4, 7, 4, 299, 0, 4])
    features = clustered_features(6, 33, seed=1)
    expected = memory.clone()
    reference.loop.update_memory_(expected, index, features, torch.tensor(0.4))
    sk.update_memory_(memory, index, features, 0.4)
    assert (memory - expected).abs().max() < 3e-7


def test_features_may_be_rows_of_the_memory():
    memory = clustered_features(50, 8)
    expected, index = memory.clone(), torch.tensor([1, 2, 3])
    reference.update_memory_(expected, index, expected[2:5].clone(), torch.tensor(0.5))
    sk.update_memory_(memory, index, memory[2:5], 0.5)
    assert (memory - expected).abs().max() < 2e-7


@settings(max_examples=60, deadline=None)
@given(
    n=sizes,
    batch=st.integers(0, 40),
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_label_memory_follows_the_reference(n, batch, seed, density):
    generator = torch.Generator().manual_seed(seed)
    memory = sk.PseudoLabelMemory(n)
    rows, columns = memory.row_bits.clone(), memory.column_bits.clone()
    for step in range(2):
        index = batch_of(n, batch, seed + step)
        labels = reference.pack_labels(torch.rand(batch, n, generator=generator) < density)
        memory.write_(index, labels)
        reference.write_labels_(rows, columns, index, labels)
    assert torch.equal(memory.row_bits, rows) and torch.equal(memory.column_bits, columns)
    index = torch.randint(-1, n, (batch,), generator=generator)
    assert torch.equal(memory.rows(index), reference.gather_labels(rows, index))
    flags = torch.rand(batch, n, generator=generator) < density
    packed = sk.pack_labels(flags)
    assert torch.equal(packed, reference.pack_labels(flags))
    assert torch.equal(sk.unpack_labels(packed, n), flags)


def test_bits_past_the_last_column_are_never_followed():
    memory = sk.PseudoLabelMemory(130)
    memory.write_(torch.tensor([3]), torch.full((1, 32), 255, dtype=torch.uint8))
    assert memory.to_dense()[3].all() and int(memory.to_dense().sum()) == 129 + 130
    assert_tail_is_zero(memory.row_bits, 130)
    assert_tail_is_zero(memory.column_bits, 130)
    similarity = torch.rand(1, 130) - 0.5
    full = torch.full((1, 32), 255, dtype=torch.uint8)
    value, grad = OPS.mutual_label_loss.default(similarity, [full], [1.0], "mmcl", 5.0, 0.01)
    assert value.item() == pytest.approx((5 * (1 - similarity).square().mean()).item(), rel=1e-5)
    assert grad.shape == (1, 130)


@settings(max_examples=100, deadline=None)
@given(
    n=sizes,
    batch=st.integers(0, 9),
    seed=st.integers(0, 10**6),
    sets=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    kind=st.sampled_from(["mmcl", "l2"]),
    ratio=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    tied=st.booleans(),
)
def test_loss_follows_the_reference(n, batch, seed, sets, density, kind, ratio, tied):
    generator = torch.Generator().manual_seed(seed)
    memory = exact_rows(n, 5, seed) if tied else clustered_features(n, 5, seed=seed)
    features = exact_rows(batch, 5, seed + 1) if tied else clustered_features(batch, 5, seed=seed + 1)
    labels = [reference.pack_labels(torch.rand(batch, n, generator=generator) < density) for _ in range(sets)]
    weights = [1.0, 0.0, 0.6][:sets]
    similarity = features @ memory.t()
    exact, exact_grad = reference.mutual_label_loss_with_grad(
        similarity.double(), labels, weights, kind, 5.0, ratio
    )
    loss, grad = OPS.mutual_label_loss.default(similarity, labels, weights, kind, 5.0, ratio)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-6)
    assert (grad - exact_grad).abs().max() <= 1e-6 * (1 + exact_grad.abs().max()) if grad.numel() else True
    # Ties: the same entries; a positive of one set that is a hard negative of another may cancel to nothing.
    same_entries = ((grad != 0) == (exact_grad != 0)) | (exact_grad.abs() < 1e-6)
    assert same_entries.all() or kind == "l2"
    fused_exact = exact_grad @ memory.double()
    # No further from the truth than a plain float32 product, but for the rounding of what is summed.
    plain_error = (exact_grad.float() @ memory - fused_exact).abs()
    allowed = (plain_error.max() if batch else 0.0) + 1e-6 * (1 + exact_grad.abs() @ memory.double().abs())
    for given_similarity in (similarity, None):
        fused, fused_grad = OPS.fused_mutual_label_loss.default(
            features, memory, given_similarity, labels, weights, kind, 5.0, ratio
        )
        assert fused.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-6)
        assert ((fused_grad - fused_exact).abs() <= allowed).all()


def test_a_nan_similarity_gives_a_nan_loss():
    """A diverged network must not look healthy."""
    similarity = torch.rand(2, 400)
    similarity[1, 77] = torch.nan
    labels = reference.identity_labels(torch.tensor([3, 4]), 400)
    for kind in ("mmcl", "l2"):
        assert torch.isnan(OPS.mutual_label_loss.default(similarity, [labels], [1.0], kind, 5.0, 0.01)[0])


# Around the numbers from which on the product is made in tiles, and around whole tiles of 512 columns.
@pytest.mark.parametrize("batch", [1, 3, 4, 65, 256, 257])
# With 256 rows tiles are made for 16,384 columns at a time.
@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 1535, 1537, 16_900])
def test_similarity_in_tiles(batch, n):
    wide, memory = clustered_features(batch, 74, seed=1), clustered_features(n, 37)
    for features in (wide[:, ::2], wide[:, :37].contiguous()):
        similarity = sk.memory_similarity(features, memory)
        assert similarity.shape == (batch, n) and similarity.is_contiguous()
        assert (similarity.double() - features.double() @ memory.double().t()).abs().max() < 1e-6
    exact = exact_rows(batch, 8, 0) @ exact_rows(n, 8, 1).t()
    assert torch.equal(sk.memory_similarity(exact_rows(batch, 8, 0), exact_rows(n, 8, 1)), exact)
    without = sk.memory_similarity(torch.zeros(batch, 0), torch.zeros(n, 0))
    assert torch.equal(without, torch.zeros(batch, n))
