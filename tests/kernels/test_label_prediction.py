"""Label prediction and nearest neighbours: the vectorised reference against the per-sample form, the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.reference.selection import ordered_topk
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import batch_of, exact_memory_of, exact_rows, memory_of, needs_cpu_library, sizes


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    batch=st.integers(0, 20),
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([-2.0, 0.0, 0.5, 0.6, 1.0, 50.0]),
    min_rank=st.sampled_from([0, 3, 10]),
    kind=st.sampled_from(["exact", "clustered", "same", "zero rows", "duplicates"]),
    source=st.sampled_from(["streaming", "lists", "few places", "query"]),
)
def test_vectorised_equals_loop(n, batch, seed, threshold, min_rank, kind, source):
    memory, index = exact_memory_of(kind, n, 6, seed), batch_of(n, batch, seed)
    form, rows = {}, {}
    if source in ("lists", "few places"):
        form["lists"] = sk.neighbor_lists(memory, 40 if source == "lists" else 3)
    if source == "query":
        rows["query_rows"] = exact_rows(batch, 6, seed + 1) @ memory.t()
    labels = reference.loop.mplp(memory, index, threshold, min_rank, **rows)
    assert torch.equal(sk.mplp(memory, index, threshold, min_rank, **form, **rows), labels)
    dense = sk.unpack_labels(labels, n)
    assert dense[torch.arange(batch), index].all()  # i itself is always set
    ours = sk.nearest_neighbors(memory, index, 4, **form, **rows)
    theirs = reference.loop.nearest_neighbors(memory, index, 4, **rows)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_a_worked_example():
    """Similarities set by hand: 0's candidates are 0, 1, 2, 3; candidate 2 has two better friends than 0."""
    similarity = torch.eye(6)
    for i, j, value in [(0, 1, 0.9), (0, 2, 0.8), (0, 3, 0.7), (2, 4, 0.95), (2, 5, 0.94), (1, 2, 0.65)]:
        similarity[i, j] = similarity[j, i] = value
    memory = torch.zeros(6, 2)  # unread: rows and candidates come from the lists, or from the matrix
    index = torch.tensor([0])

    def positives(min_rank, strict=False):
        labels = reference.mplp(memory, index, 0.6, min_rank, cache=similarity, strict=strict)
        values, columns = similarity.sort(dim=1, descending=True, stable=True)
        lists = sk.NeighborLists(
            columns.int(), values, torch.full((6,), 6).int(), torch.full((6,), -torch.inf)
        )
        assert strict or torch.equal(sk.mplp(memory, index, 0.6, min_rank, lists=lists), labels)
        loop = reference.loop.mplp(memory, index, 0.6, min_rank, cache=similarity, strict=strict)
        assert torch.equal(loop, labels)
        return sk.unpack_labels(labels, 6)[0].nonzero().flatten().tolist()

    # k = max(4, min_rank) = 4 admits everything: 2 ranks 0 third.
    assert positives(0) == [0, 1, 2, 3]
    # Two more friends for 2 and five images are more similar to it than 0 is.
    similarity[2, 1] = 0.9
    similarity[2, 3] = 0.85
    assert positives(0) == [0, 1]  # 2 fails at k = 4, and 3 behind it is never reached
    assert positives(5) == [0, 1, 2, 3]
    # The first candidate fails: two positives all the same, unless strict.
    similarity[1, 2:] = 0.95
    similarity[1, 1] = 0.95
    assert positives(4) == [0, 1]
    assert positives(4, strict=True) == [0]
    # A consistent candidate behind it is not reached.
    similarity[2, 3] = 0.1
    assert positives(4) == [0, 1]
    assert positives(4, strict=True) == [0]
    similarity[1, 2] = 0.1
    assert positives(4) == [0, 1, 2, 3]  # the first is consistent now, and so are the others


def test_thresholding_alone_gives_other_labels():
    memory = clustered_features(2000, 64)
    index = torch.arange(256)
    labels = sk.unpack_labels(sk.mplp(memory, index), 2000)
    candidates = memory[index] @ memory.t() > 0.6
    assert 1 - (labels & candidates).sum() / candidates.sum() > 0.2


@needs_cpu_library
@settings(max_examples=60, deadline=None)
@given(
    n=sizes,
    batch=st.integers(0, 80),
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([-50.0, 0.0, 0.0625, 0.5625, 50.0]),
    kind=st.sampled_from(["exact", "same", "zero rows", "duplicates"]),
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


@needs_cpu_library
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


@needs_cpu_library
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


@pytest.mark.parametrize("n", [1, 2, 9])
def test_fewer_images_than_ranks(n):
    memory = torch.nn.functional.normalize(torch.ones(n, 4), dim=1)
    labels = sk.unpack_labels(sk.mplp(memory, torch.arange(n)), n)
    assert labels.all()  # everything is a candidate and no rank can exceed 10
    index, similarity = sk.nearest_neighbors(memory, torch.arange(n), 3)
    assert (index[:, n - 1 :] == -1).all() and (similarity[:, n - 1 :] == -torch.inf).all()
    if n == 9:
        assert index[0].tolist() == [1, 2, 3] and index[1].tolist() == [0, 2, 3]


def test_threshold_is_strict_and_rounded_to_float32():
    memory = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # similarity is float32(0.6) exactly
    assert sk.unpack_labels(sk.mplp(memory, torch.tensor([0]), 0.6), 2).tolist() == [[True, False]]
    assert sk.unpack_labels(sk.mplp(memory, torch.tensor([0]), 0.5999999), 2).tolist() == [[True, True]]


@pytest.mark.parametrize("k", [0, 1, 5, 16, 17])
def test_ordered_topk_is_a_stable_sort(k):
    values = torch.randint(4, (50, 17), generator=torch.Generator().manual_seed(k)).float()
    top, columns = ordered_topk(values, k)
    expected, order = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top, expected[:, :k]) and torch.equal(columns, order[:, :k])
