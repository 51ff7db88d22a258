"""Similarities, and their gradient: of one with few entries the rows of the memory that these are of are read alone."""

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import ops, reference
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import exact_rows, needs_cpu_library

BACKWARD = torch.ops.snnet.memory_similarity_backward.default


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.124, 0.126, 0.6, 1.0])
@pytest.mark.parametrize(("batch", "n", "d"), [(64, 1000, 48), (3, 9000, 5), (1, 20000, 1), (5, 40, 8)])
def test_it_is_the_product_however_many_entries_there_are(batch, n, d, share):
    generator = torch.Generator().manual_seed(0)
    memory = torch.randint(-4, 5, (n, d), generator=generator).float()
    grad = torch.randint(1, 5, (batch, n), generator=generator).float()
    grad *= torch.rand(batch, n, generator=generator) < share
    assert torch.equal(BACKWARD(grad, memory), grad @ memory)  # whole numbers: exact in any order
    assert torch.equal(reference.memory_similarity_backward(grad, memory), grad @ memory)


def test_entries_that_are_not_finite_count():
    memory, grad = torch.rand(400, 6) + 1, torch.zeros(64, 400)
    grad[3, 7], grad[9, 399] = torch.nan, -torch.inf
    found = BACKWARD(grad, memory)
    assert found[3].isnan().all() and (found[9] == -torch.inf).all()
    found[[3, 9]] = 0
    assert not found.any()


def test_a_loss_of_hard_negatives_gives_the_gradient_of_the_fused_one():
    generator = torch.Generator().manual_seed(1)
    features, memory = (
        torch.nn.functional.normalize(torch.randn(rows, 32, generator=generator), dim=1)
        for rows in (16, 3000)
    )
    labels = [ops.pack_labels(torch.rand(16, 3000, generator=generator) < 0.002)]
    plain, fused = features.clone().requires_grad_(), features.clone().requires_grad_()
    sk.mutual_label_loss(sk.memory_similarity(plain, memory), labels, [1.0]).backward()
    sk.fused_mutual_label_loss(fused, memory, labels, [1.0]).backward()
    torch.testing.assert_close(plain.grad, fused.grad, rtol=0, atol=1e-6 * float(fused.grad.abs().max()))


def test_other_layouts_are_products():
    generator = torch.Generator().manual_seed(2)
    memory, grad = torch.rand(500, 8, generator=generator), torch.rand(500, 40, generator=generator)
    grad *= grad < 0.01
    expected = grad.t().double() @ memory.double()
    torch.testing.assert_close(BACKWARD(grad.t(), memory).double(), expected, rtol=0, atol=1e-6)
    with pytest.raises((ValueError, RuntimeError), match=r"the same n|mat1 and mat2 shapes"):
        BACKWARD(grad.t(), memory[1:])


# Around the numbers from which on the product is made in tiles, and around whole tiles of 512 columns.
@needs_cpu_library
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
