"""The CUDA losses, run on CPU tensors by the emulation, against the reference in float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import label_sets

WEIGHTS = [1.0, 0.8, 0.6]
EVERY_SHARED = 163 * 1024  # what a block of the emulated device can have


@pytest.fixture(scope="module")
def operations(cuda_on_cpu):
    return cuda_on_cpu.operations


@pytest.fixture
def little_shared(cuda_on_cpu) -> Iterator[None]:
    """A device whose blocks cannot hold a row of similarities."""
    cuda_on_cpu.most_shared(34 * 1024)
    yield
    cuda_on_cpu.most_shared(EVERY_SHARED)


def everything(operations, n: int = 2500, batch: int = 3) -> list[Tensor]:
    memory, features = clustered_features(n, 20), clustered_features(batch, 20, seed=1)
    similarity = features @ memory.t()
    similarity[1] = (similarity[1] * 8).round() / 8
    labels = label_sets(batch, n, [0.01] * 3, 0)
    dense = operations.mutual_label_loss(similarity, labels, WEIGHTS, "mmcl", 5.0, 0.02)
    sparse = operations.sparse_label_loss(similarity, memory, labels, WEIGHTS, 5.0, 0.02)
    square = operations.mutual_label_loss(similarity, labels, WEIGHTS, "l2", 5.0, 0.02)
    return [*dense, *sparse, *square]


def test_rows_that_do_not_fit_in_shared_memory(operations, request):
    staged = everything(operations)
    request.getfixturevalue("little_shared")
    assert all(torch.equal(a, b) for a, b in zip(staged, everything(operations), strict=True))


def test_a_row_longer_than_any_shared_memory(operations):
    n = 60_001
    similarity = torch.rand(1, n, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = label_sets(1, n, [0.001] * 3, 1)
    exact, exact_grad = reference.mutual_label_loss_with_grad(
        similarity.double(), labels, WEIGHTS, "mmcl", 5.0, 0.01
    )
    loss, grad = operations.mutual_label_loss(similarity, labels, WEIGHTS, "mmcl", 5.0, 0.01)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert torch.equal(grad != 0, exact_grad != 0) and (grad - exact_grad).abs().max() < 1e-8


def test_results_do_not_depend_on_the_order_of_blocks_and_threads(cuda_on_cpu, operations):
    results = []
    for seed in range(3):
        cuda_on_cpu.seed(seed)
        results.append(everything(operations))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_two_launches(cuda_on_cpu, operations):
    similarity, memory, labels = torch.rand(2, 50), torch.rand(50, 8), label_sets(2, 50, [0.1] * 3, 0)
    cuda_on_cpu.launches()
    operations.sparse_label_loss(similarity, memory, labels, WEIGHTS, 5.0, 0.01)
    assert cuda_on_cpu.launches() == 2
    for kind in ("mmcl", "l2"):
        operations.mutual_label_loss(similarity, labels, WEIGHTS, kind, 5.0, 0.01)
        assert cuda_on_cpu.launches() == 2


def test_addresses_that_are_not_aligned(operations):
    """Views one float, one byte into a storage: the same results."""
    memory, similarity = clustered_features(300, 12), torch.rand(2, 300)
    labels = label_sets(2, 300, [0.05] * 3, 0)
    expected = operations.sparse_label_loss(similarity, memory, labels, WEIGHTS, 5.0, 0.05)
    shifted = torch.cat([torch.zeros(1), memory.flatten()])[1:].view(300, 12)
    bytes_ = [torch.cat([torch.zeros(1, dtype=torch.uint8), own.flatten()])[1:].view(2, -1) for own in labels]
    assert shifted.data_ptr() % 16 and bytes_[0].data_ptr() % 4
    loss, grad = operations.sparse_label_loss(similarity, shifted, bytes_, WEIGHTS, 5.0, 0.05)
    assert torch.equal(loss, expected[0]) and torch.equal(grad, expected[1])


def test_a_nan_similarity_gives_a_nan_product(operations):
    similarity = torch.rand(2, 400)
    similarity[1, 0] = torch.nan
    labels = reference.identity_labels(torch.tensor([3, 4]), 400)
    loss, grad = operations.sparse_label_loss(similarity, torch.rand(400, 3), [labels], [1.0], 5.0, 0.01)
    assert loss.isnan() and grad.isnan().all(1).tolist() == [False, True]


def test_a_memory_row_without_weight_is_not_read(operations):
    """A row of NaN that no entry names leaves no trace."""
    similarity = torch.linspace(-0.5, 0.5, 100)[None]
    memory = torch.rand(100, 40)
    memory[0] = torch.nan
    labels = reference.identity_labels(torch.tensor([7]), 100)
    grad = operations.sparse_label_loss(similarity, memory, [labels], [1.0], 5.0, 0.05)[1]
    exact_grad = reference.mutual_label_loss_with_grad(
        similarity.double(), [labels], [1.0], "mmcl", 5.0, 0.05
    )[1]
    assert exact_grad[0, 0] == 0
    assert (grad - exact_grad[:, 1:] @ memory[1:].double()).abs().max() < 1e-5


@pytest.mark.parametrize(("batch", "n", "d"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_to_do(operations, batch, n, d):
    similarity, labels = torch.rand(batch, n), label_sets(batch, n, [0.5] * 1, 0)
    expected = reference.mutual_label_loss_with_grad(similarity, labels, [1.0], "mmcl", 5.0, 0.01)
    loss, grad = operations.mutual_label_loss(similarity, labels, [1.0], "mmcl", 5.0, 0.01)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6) and grad.shape == (batch, n)
    loss, grad = operations.sparse_label_loss(similarity, torch.rand(n, d), labels, [1.0], 5.0, 0.01)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert torch.equal(grad, torch.zeros(batch, d))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": torch.zeros(6)}, "similarity must have 2 dimensions"),
        ({"labels": []}, "labels and weights must have the same length of 1 to 3"),
        ({"labels": [torch.zeros(2, 15, dtype=torch.uint8)]}, "labels must have shape"),
        ({"weights": [-1.0]}, "weights must be finite and not negative, got -1"),
        ({"weights": [0.0]}, "weights must not all be zero"),
        ({"kind": "cosine"}, "kind must be 'mmcl' or 'l2', got 'cosine'"),
        ({"delta": float("nan")}, "delta must be finite"),
        ({"ratio": 1.5}, "hard_negative_ratio must lie in"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(operations, change, message):
    arguments = {
        "similarity": torch.zeros(2, 3),
        "labels": [torch.zeros(2, 16, dtype=torch.uint8)],
        "weights": [1.0],
        "kind": "mmcl",
        "delta": 5.0,
        "ratio": 0.01,
        **change,
    }
    with pytest.raises((ValueError, RuntimeError), match=message):
        operations.mutual_label_loss(*arguments.values())


def test_a_missing_barrier_is_noticed(operations, switched_barriers, without_barrier):
    """Without the barrier between counting digits and choosing one, another threshold is found, or none."""
    similarity = torch.rand(1, 3000, generator=torch.Generator().manual_seed(0))
    labels = label_sets(1, 3000, [0.01] * 1, 0)
    arguments = (similarity, labels, [1.0], "mmcl", 5.0, 0.01)
    right = operations.mutual_label_loss(*arguments)[1]
    assert torch.equal(switched_barriers.operations.mutual_label_loss(*arguments)[1], right)
    broken = without_barrier("after counting digits")
    assert not torch.equal(broken.operations.mutual_label_loss(*arguments)[1], right)
