"""The CUDA losses, run on CPU tensors by the emulation, against the reference in float64."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels import extreme_losses
from tests.kernels.inputs import exact_rows, label_sets

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


def assert_sparse_product(product: Tensor, grad: Tensor, memory: Tensor) -> None:
    """No further from the truth than a plain float32 product, but for the rounding of what is summed."""
    exact = grad @ memory.double()
    plain_error = (grad.float() @ memory - exact).abs()
    allowed = (plain_error.max() if len(grad) else 0.0) + 1e-6 * (1 + grad.abs() @ memory.double().abs())
    assert product.shape == exact.shape and ((product - exact).abs() <= allowed).all()


@settings(max_examples=80, deadline=None)
@given(
    # Around a word of labels, a warp's range of columns, a block of threads and its four columns at once.
    n=st.one_of(st.integers(1, 40), st.sampled_from([127, 129, 1023, 1024, 1025, 2047, 4097, 5000])),
    batch=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    sets=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    kind=st.sampled_from(["mmcl", "mmcl", "l2"]),
    ratio=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    tied=st.booleans(),
    d=st.sampled_from([1, 4, 5, 132]),
)
def test_losses_follow_the_reference(
    cuda_on_cpu, operations, n, batch, seed, sets, density, kind, ratio, tied, d
):
    make = exact_rows if tied else clustered_features
    memory, features = make(n, d, seed=seed), make(batch, d, seed=seed + 1)
    labels, weights = label_sets(batch, n, [density] * sets, seed), [1.0, 0.0, 0.6][:sets]
    similarity = features @ memory.t()
    exact, exact_grad = reference.mutual_label_loss_with_grad(
        similarity.double(), labels, weights, kind, 5.0, ratio
    )
    cuda_on_cpu.seed(seed)
    loss, grad = operations.mutual_label_loss(similarity, labels, weights, kind, 5.0, ratio)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-7)
    assert grad.shape == exact_grad.shape
    assert ((grad - exact_grad).abs() <= 2e-7 * (exact_grad.abs() + 1)).all()
    if kind == "mmcl":
        # Ties: the same entries; a positive of one set that is a hard negative of another may cancel to nothing.
        assert (((grad != 0) == (exact_grad != 0)) | (exact_grad.abs() < 1e-6)).all()
        loss, product = operations.sparse_label_loss(similarity, memory, labels, weights, 5.0, ratio)
        assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-7)
        assert_sparse_product(product, exact_grad, memory)


@extreme_losses.CASES
def test_what_is_not_finite(operations, kind, value, delta):
    similarity, labels, weights = extreme_losses.problem(value)
    answers = []
    for row in range(len(similarity)):
        part = slice(row, row + 1)
        parts = [label[part] for label in labels]
        answers.append(operations.mutual_label_loss(similarity[part], parts, weights, kind, delta, 0.1))
    extreme_losses.assert_as_the_reference(answers, value, kind, delta)


@pytest.mark.parametrize("value", [0.25, 0.0, -1.0])
def test_equal_similarities_go_to_lower_columns(operations, value):
    """Every similarity ties: 30 of 3,000, after the positives of each set are left out."""
    n = 3000
    similarity = torch.full((2, n), value)
    similarity[:, 1::2] *= 1.0 if value else -1.0  # -0 equals +0
    positives = torch.zeros(2, 2, n, dtype=torch.bool)
    positives[0, :, 3:13] = True
    positives[1, :, 20:25] = True
    labels = [reference.pack_labels(flags) for flags in positives]
    grad = operations.mutual_label_loss(similarity, labels, [0.5, 0.5], "mmcl", 0.0, 0.01)[1]
    hard = [~flags & ((~flags).cumsum(1) <= 29) for flags in positives]
    expected = (hard[0].float() + hard[1].float()) * 0.5 / 29 / 2 * 2 * (value + 1)
    assert (grad - expected).abs().max() < 1e-9
    assert int((grad != 0).sum()) == (0 if value == -1 else 2 * 39)


def test_ties_at_the_threshold_in_the_middle_of_a_row(operations):
    """Ten above the threshold, then seven of many equal ones: the seven with the lowest columns."""
    n, generator = 1700, torch.Generator().manual_seed(0)
    columns = torch.randperm(n, generator=generator)
    similarity = torch.full((1, n), -0.5)
    similarity[0, columns[:10]] = 0.9
    similarity[0, columns[10:400]] = 0.3
    labels = reference.pack_labels(torch.zeros(1, n, dtype=torch.bool))
    grad = operations.mutual_label_loss(similarity, [labels], [1.0], "mmcl", 5.0, 0.01)[1]
    expected = {*columns[:10].tolist(), *columns[10:400].sort().values[:7].tolist()}
    assert set(grad[0].nonzero().flatten().tolist()) == expected


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


def test_bits_past_the_last_column_are_never_followed(operations):
    similarity, full = torch.rand(1, 130) - 0.5, torch.full((1, 32), 255, dtype=torch.uint8)
    exact = 5 * (1 - similarity.double()).square().mean()
    loss, grad = operations.mutual_label_loss(similarity, [full], [1.0], "mmcl", 5.0, 0.01)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (grad - 10 * (similarity - 1) / 130).abs().max() < 1e-7


def test_a_nan_similarity_gives_a_nan_loss(operations):
    similarity = torch.rand(2, 400)
    similarity[1, 0] = torch.nan
    labels = reference.identity_labels(torch.tensor([3, 4]), 400)
    for kind in ("mmcl", "l2"):
        loss, grad = operations.mutual_label_loss(similarity, [labels], [1.0], kind, 5.0, 0.01)
        assert loss.isnan() and grad.isnan().nonzero().tolist() == [[1, 0]]
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
