"""The edges of the definitions: hardly any images, thousands of candidates, zero rows, duplicates, NaN, stray bits.

Every result is held against the loop over samples or the plain reference, compiled library or not.
"""

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import ops, reference
from tests.kernels.inputs import exact_rows, memory_of
from tests.kernels.list_checks import check_lists, symmetric_lists

KINDS = ["exact", "same", "zero", "zero rows", "duplicates"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [-9.0, 0.5625, 0.6, 9.0])
def test_few_images(kind, threshold):
    for n in range(1, 13):
        memory, index = memory_of(kind, n, 4, seed=n), torch.arange(n).repeat(2)
        cache = memory @ memory.t()
        lists = symmetric_lists(memory, 8)
        expected = reference.loop.mplp(memory, index, threshold, cache=cache)
        for options in ({}, {"lists": lists}, {"query_rows": cache[index]}):
            assert torch.equal(sk.mplp(memory, index, threshold, **options), expected)
        for k in (1, 3, 15):
            expected_index, expected_similarity = reference.loop.nearest_neighbors(
                memory, index, k, cache=cache
            )
            for options in ({}, {"lists": lists}):
                neighbors, similarity = sk.nearest_neighbors(memory, index, k, **options)
                assert torch.equal(neighbors, expected_index)
                assert torch.equal(similarity, expected_similarity)
        labels = [expected, reference.identity_labels(index, n)]
        for loss_kind in ("mmcl", "l2"):
            loss = sk.mutual_label_loss(cache[index], labels, [1.0, 0.5], kind=loss_kind)
            expected_loss = reference.loop.mutual_label_loss(cache[index], labels, [1.0, 0.5], kind=loss_kind)
            assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5, abs=1e-6)
        sk.update_memory_(memory, index, -memory[index], 0.5, lists=lists)  # onto zero, then away from it
        assert memory.isfinite().all()
        check_lists(lists, memory @ memory.t(), 1e-5)


def test_no_images():
    memory, index = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert sk.mplp(memory, index).shape == (0, 0)
    for lists in (symmetric_lists(memory, 4), sk.neighbor_lists(memory, 4)):
        assert lists.columns.shape == lists.values.shape == (0, 0) and lists.counts.shape == (0,)
    assert sk.mplp(memory, index, lists=symmetric_lists(memory, 4)).numel() == 0
    assert sk.nearest_neighbors(memory, index, 2)[0].shape == (0, 2)
    labels = torch.zeros(3, 0, dtype=torch.uint8)
    assert sk.fused_mutual_label_loss(torch.ones(3, 4), memory, [labels], [1.0]).item() == 0
    sk.update_memory_(memory, index, torch.zeros(0, 4), 0.5, lists=symmetric_lists(memory, 4))
    ops.write_labels_(labels[:0], labels[:0].clone(), index, labels[:0])


@pytest.mark.parametrize("n", [1, 127, 128, 130])
def test_bits_past_the_last_column_are_not_written(n):
    labels = torch.full((2, sk.label_bytes(n)), 255, dtype=torch.uint8)
    index = torch.tensor([0, n - 1])
    for write in (ops.write_labels_, reference.write_labels_):
        row_bits = torch.zeros(n, sk.label_bytes(n), dtype=torch.uint8)
        column_bits = row_bits.clone()
        write(row_bits, column_bits, index, labels)
        flags = reference.unpack_labels(row_bits, 8 * row_bits.shape[1])
        assert flags[index, :n].all() and int(flags.sum()) == n * len(index.unique())
        assert torch.equal(reference.unpack_labels(column_bits, n), flags[:, :n].t())
        assert int(reference.unpack_labels(column_bits, 8 * row_bits.shape[1])[:, n:].sum()) == 0


def poisoned_rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A memory and similarity rows to it with no, one, several and only NaN."""
    memory = exact_rows(n, 4, seed=1)
    similarity = exact_rows(5, 4, seed=2) @ memory.t()
    similarity[1, n // 2] = torch.nan
    similarity[2, [0, 3, n - 1]] = torch.nan
    similarity[3, :] = torch.nan
    similarity[4, 1::2] = -torch.nan
    return memory, similarity


@pytest.mark.parametrize("n", [6, 65, 700])
def test_nan_similarities_are_no_candidates(n):
    memory, similarity = poisoned_rows(n)
    index = torch.tensor([0, 1, 2, 3, 4])
    cache = memory @ memory.t()
    expected = reference.loop.mplp(memory, index, 0.25, cache=cache, query_rows=similarity)
    flags = sk.unpack_labels(expected, n)
    assert not (flags & similarity.isnan())[torch.arange(n) != index[:, None]].any()
    assert torch.equal(sk.mplp(memory, index, 0.25, query_rows=similarity), expected)
    for capacity in (5, n):
        lists = symmetric_lists(memory, capacity)
        assert torch.equal(sk.mplp(memory, index, 0.25, query_rows=similarity, lists=lists), expected)
    assert torch.equal(reference.mplp(memory, index, 0.25, query_rows=similarity), expected)
    poisoned = cache.clone()
    poisoned[:, 2] = poisoned[2] = torch.nan
    for strict in (False, True):
        options = {"query_rows": similarity, "strict": strict}
        for given in (cache, poisoned):
            wanted = reference.loop.mplp(memory, index, 0.25, cache=given, **options)
            assert torch.equal(reference.mplp(memory, index, 0.25, cache=given, **options), wanted)


def test_a_nan_row_of_the_memory_leaves_the_other_labels_alone():
    memory = exact_rows(700, 4, seed=1)
    memory[2] = torch.nan
    index = torch.arange(0, 700, 9)
    expected = reference.loop.mplp(memory, index, 0.25, cache=memory @ memory.t())
    assert torch.equal(sk.mplp(memory, index, 0.25), expected)
    for capacity in (40, 700):
        assert torch.equal(sk.mplp(memory, index, 0.25, lists=symmetric_lists(memory, capacity)), expected)
    assert torch.equal(reference.mplp(memory, index, 0.25), expected)
    labels = sk.unpack_labels(expected, 700)
    assert int(labels[:, 2].sum()) == 0 and int(labels.sum()) > 2 * len(index)


@pytest.mark.parametrize("n", [6, 65, 700])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_nan_similarities_are_the_nearest(n, k):
    memory, similarity = poisoned_rows(n)
    index = torch.tensor([0, n // 2, 2, 3, 4])
    expected, expected_similarity = reference.loop.nearest_neighbors(memory, index, k, query_rows=similarity)
    for function in (sk.nearest_neighbors, reference.nearest_neighbors):
        neighbors, values = function(memory, index, k, query_rows=similarity)
        assert torch.equal(neighbors, expected)
        assert torch.equal(values.nan_to_num(7.0), expected_similarity.nan_to_num(7.0))
    assert expected[2, 0] == 0 and expected_similarity[2, 0].isnan()


@pytest.mark.parametrize(("beyond", "positives"), [(9000, 300), (100, 8300)])
def test_streaming_labels_of_thousands_of_candidates(beyond, positives):
    """Candidates near 0 and at 45 degrees; images at 80 degrees are nearer to those at 45 than the anchors are."""
    near = -0.01 * torch.arange(300)
    angles = torch.cat([near, torch.full((8000,), 45.0), torch.full((beyond,), 80.0)]).deg2rad()
    memory = torch.stack([angles.cos(), angles.sin()], dim=1)
    flags = sk.unpack_labels(sk.mplp(memory, torch.arange(64)), len(memory))
    assert flags[:, :positives].all() and int(flags.sum()) == 64 * positives
