"""Label prediction and nearest neighbours: the vectorised reference against the per-sample form, the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.reference.selection import ordered_topk
from snnet_kernels.testing import clustered_features


def exact_features(n: int, d: int, seed: int) -> torch.Tensor:
    """Small integers times a power of two: every product is exact in float32, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (n, d), generator=generator).float() / 4


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
    memory = exact_features(n, 6, seed)
    if kind == "clustered":
        memory = (clustered_features(n, 6, seed=seed) * 64).round() / 64
    elif kind == "same":
        memory = memory[:1].expand(n, 6).contiguous()
    elif kind == "zero rows":
        memory[::2] = 0
    elif kind == "duplicates":
        memory = memory[torch.arange(n) // 3].contiguous()
    index = torch.randint(n, (batch,), generator=torch.Generator().manual_seed(seed))
    form, rows = {}, {}
    if source in ("lists", "few places"):
        form["lists"] = sk.neighbor_lists(memory, 40 if source == "lists" else 3)
    if source == "query":
        rows["query_rows"] = exact_features(batch, 6, seed + 1) @ memory.t()
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


def test_thresholding_alone_gives_other_labels():
    memory = clustered_features(2000, 64)
    index = torch.arange(256)
    labels = sk.unpack_labels(sk.mplp(memory, index), 2000)
    candidates = memory[index] @ memory.t() > 0.6
    assert 1 - (labels & candidates).sum() / candidates.sum() > 0.2


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
