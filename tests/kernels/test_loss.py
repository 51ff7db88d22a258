"""The mutual label loss: against the per-sample form, by gradcheck, at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels import extreme_losses
from tests.kernels.inputs import exact_rows, label_sets, sizes


def problem(batch, n, sets, seed=0, density=0.05):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(batch, n, generator=generator, dtype=torch.float64) * 2 - 1
    labels = [sk.pack_labels(torch.rand(batch, n, generator=generator) < density) for _ in range(sets)]
    return similarity, labels, [1.0, 0.8, 0.6][:sets]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 6),
    n=st.integers(1, 300),
    sets=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    kind=st.sampled_from(["mmcl", "l2"]),
    ratio=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_value_and_gradient_equal_the_loop(batch, n, sets, seed, density, kind, ratio):
    similarity, labels, weights = problem(batch, n, sets, seed, density)
    options = {"kind": kind, "delta": 5.0, "hard_negative_ratio": ratio}
    by_loop = similarity.clone().requires_grad_()
    expected = reference.loop.mutual_label_loss(by_loop, labels, weights, **options)
    (gradient,) = torch.autograd.grad(expected, by_loop)
    plain = similarity.clone().requires_grad_()
    loss = reference.mutual_label_loss(plain, labels, weights, **options)
    (plain_gradient,) = torch.autograd.grad(loss, plain)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain_gradient, gradient, rtol=1e-12, atol=1e-14)
    direct, direct_gradient = reference.mutual_label_loss_with_grad(
        similarity, labels, weights, *options.values()
    )
    torch.testing.assert_close(direct, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(direct_gradient, gradient, rtol=1e-12, atol=1e-14)
    single = similarity.float().requires_grad_()
    value = sk.mutual_label_loss(single, labels, weights, **options)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    value.backward()
    assert single.grad is not None and torch.isfinite(single.grad).all()


def fused_losses(operations, features, memory, similarity, labels, weights, kind, ratio):
    """Loss and gradient for the features, by each operation of these kernels that makes both at once."""
    if operations is torch.ops.snnet:
        if memory.shape[1] == 1:
            return []  # a plain product of one column may be nearer than the bound of the test allows for
        return [
            operations.fused_mutual_label_loss(features, memory, known, labels, weights, kind, 5.0, ratio)
            for known in (similarity, None)
        ]
    if kind == "mmcl":
        return [operations.sparse_label_loss(similarity, memory, labels, weights, 5.0, ratio)]
    return []  # the gradient of l2 is not sparse: torch multiplies it


@settings(max_examples=100, deadline=None)
@given(
    # Also around a warp's range of columns, a block of threads and its four columns at once.
    n=st.one_of(sizes, st.sampled_from([1023, 1024, 1025, 2047, 4097, 5000])),
    batch=st.integers(0, 9),
    seed=st.integers(0, 10**6),
    sets=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    kind=st.sampled_from(["mmcl", "mmcl", "l2"]),
    ratio=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    tied=st.booleans(),
    d=st.sampled_from([1, 4, 5, 132]),
)
def test_compiled_losses_follow_the_reference(kernels, n, batch, seed, sets, density, kind, ratio, tied, d):
    make = exact_rows if tied else clustered_features
    memory, features = make(n, d, seed=seed), make(batch, d, seed=seed + 1)
    labels, weights = label_sets(batch, n, [density] * sets, seed), [1.0, 0.0, 0.6][:sets]
    similarity = features @ memory.t()
    exact, exact_grad = reference.mutual_label_loss_with_grad(
        similarity.double(), labels, weights, kind, 5.0, ratio
    )
    kernels.seed(seed)
    loss, grad = kernels.operations.mutual_label_loss(similarity, labels, weights, kind, 5.0, ratio)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-7)
    assert grad.shape == exact_grad.shape
    assert ((grad - exact_grad).abs() <= 2e-7 * (exact_grad.abs() + 1)).all()
    # Ties: the same entries; a positive of one set that is a hard negative of another may cancel to nothing.
    assert kind == "l2" or (((grad != 0) == (exact_grad != 0)) | (exact_grad.abs() < 1e-6)).all()
    fused_exact = exact_grad @ memory.double()
    # No further from the truth than a plain float32 product, but for the rounding of what is summed.
    plain_error = (exact_grad.float() @ memory - fused_exact).abs()
    allowed = (plain_error.max() if batch else 0.0) + 1e-6 * (1 + exact_grad.abs() @ memory.double().abs())
    for fused, fused_grad in fused_losses(
        kernels.operations, features, memory, similarity, labels, weights, kind, ratio
    ):
        assert fused.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-7)
        assert fused_grad.shape == fused_exact.shape
        assert ((fused_grad - fused_exact).abs() <= allowed).all()


@pytest.mark.parametrize("value", [0.25, 0.0, -1.0])
def test_equal_similarities_go_to_lower_columns(kernels, value):
    """Every similarity ties: 30 of 3,000, after the positives of each set are left out."""
    n = 3000
    similarity = torch.full((2, n), value)
    similarity[:, 1::2] *= 1.0 if value else -1.0  # -0 equals +0
    positives = torch.zeros(2, 2, n, dtype=torch.bool)
    positives[0, :, 3:13] = True
    positives[1, :, 20:25] = True
    labels = [reference.pack_labels(flags) for flags in positives]
    grad = kernels.operations.mutual_label_loss(similarity, labels, [0.5, 0.5], "mmcl", 0.0, 0.01)[1]
    hard = [~flags & ((~flags).cumsum(1) <= 29) for flags in positives]
    expected = (hard[0].float() + hard[1].float()) * 0.5 / 29 / 2 * 2 * (value + 1)
    assert (grad - expected).abs().max() < 1e-9
    assert int((grad != 0).sum()) == (0 if value == -1 else 2 * 39)


def test_ties_at_the_threshold_in_the_middle_of_a_row(kernels):
    """Ten above the threshold, then seven of many equal ones: the seven with the lowest columns."""
    n, generator = 1700, torch.Generator().manual_seed(0)
    columns = torch.randperm(n, generator=generator)
    similarity = torch.full((1, n), -0.5)
    similarity[0, columns[:10]] = 0.9
    similarity[0, columns[10:400]] = 0.3
    labels = reference.pack_labels(torch.zeros(1, n, dtype=torch.bool))
    grad = kernels.operations.mutual_label_loss(similarity, [labels], [1.0], "mmcl", 5.0, 0.01)[1]
    expected = {*columns[:10].tolist(), *columns[10:400].sort().values[:7].tolist()}
    assert set(grad[0].nonzero().flatten().tolist()) == expected


def test_bits_past_the_last_column_are_never_followed(kernels):
    similarity, full = torch.rand(1, 130) - 0.5, torch.full((1, 32), 255, dtype=torch.uint8)
    exact = 5 * (1 - similarity.double()).square().mean()
    loss, grad = kernels.operations.mutual_label_loss(similarity, [full], [1.0], "mmcl", 5.0, 0.01)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (grad - 10 * (similarity - 1) / 130).abs().max() < 1e-7


@pytest.mark.parametrize("column", [0, 77])
def test_a_nan_similarity_gives_a_nan_loss(kernels, column):
    """A diverged network must not look healthy."""
    similarity = torch.rand(2, 400)
    similarity[1, column] = torch.nan
    labels = reference.identity_labels(torch.tensor([3, 4]), 400)
    for kind in ("mmcl", "l2"):
        loss, grad = kernels.operations.mutual_label_loss(similarity, [labels], [1.0], kind, 5.0, 0.01)
        assert loss.isnan() and grad.isnan().nonzero().tolist() == [[1, column]]


@pytest.mark.parametrize("kind", ["mmcl", "l2"])
def test_gradcheck(kind):
    similarity, labels, weights = problem(3, 40, 3)
    assert torch.autograd.gradcheck(
        lambda s: reference.mutual_label_loss(s, labels, weights, kind=kind, hard_negative_ratio=0.2),
        similarity.requires_grad_(),
    )


def test_printed_equations_for_l2():
    similarity, labels, _ = problem(4, 30, 3)
    dense = [sk.unpack_labels(y, 30).double() for y in labels]
    terms = [((similarity - y) ** 2).sum(1).mean() for y in dense]
    expected = (1.0 * terms[0] + 0.8 * terms[1] + 0.6 * terms[2]) / 2.4
    loss = sk.mutual_label_loss(similarity.float(), labels, [1.0, 0.8, 0.6], kind="l2")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_worked_mmcl_example():
    similarity = torch.tensor([[0.9, 0.5, 0.2, -0.4, 0.1]], requires_grad=True)
    labels = sk.pack_labels(torch.tensor([[True, False, True, False, False]]))
    loss = sk.mutual_label_loss(similarity, [labels], [2.0], hard_negative_ratio=0.7)
    # floor(0.7 * 3) = 2 hard negatives: 0.5 and 0.1
    expected = 5 * (0.1**2 + 0.8**2) / 2 + (1.5**2 + 1.1**2) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert similarity.grad[0].tolist() == pytest.approx([-0.5, 1.5, -4.0, 0.0, 1.1], rel=1e-5)


def test_tied_negatives_are_taken_by_lower_index():
    similarity = torch.full((1, 10), 0.25, requires_grad=True)
    labels = sk.pack_labels(torch.arange(10)[None] == 3)
    sk.mutual_label_loss(similarity, [labels], [1.0], hard_negative_ratio=0.34).backward()
    assert (similarity.grad[0] > 0).nonzero().flatten().tolist() == [0, 1, 2]


@extreme_losses.CASES
def test_compiled_losses_of_what_is_not_finite(kernels, kind, value, delta):
    similarity, labels, weights = extreme_losses.problem(value)
    answers = []
    for row in range(len(similarity)):
        part = slice(row, row + 1)
        parts = [label[part] for label in labels]
        answers.append(
            kernels.operations.mutual_label_loss(similarity[part], parts, weights, kind, delta, 0.1)
        )
    extreme_losses.assert_as_the_reference(answers, value, kind, delta)


@extreme_losses.CASES
def test_what_is_not_finite(kind, value, delta):
    similarity, labels, weights = extreme_losses.problem(value)
    answers = []
    for row in range(len(similarity)):
        part = slice(row, row + 1)
        own = similarity[part].clone().requires_grad_()
        parts = [label[part] for label in labels]
        loss = sk.mutual_label_loss(own, parts, weights, kind=kind, delta=delta, hard_negative_ratio=0.1)
        loss.backward()
        answers.append((loss.detach(), own.grad))
    extreme_losses.assert_as_the_reference(answers, value, kind, delta)


def test_weight_zero_is_absence():
    similarity, labels, _ = problem(4, 60, 3)
    similarity = similarity.float()
    three = sk.mutual_label_loss(similarity, labels, [1.0, 0.0, 0.5])
    two = sk.mutual_label_loss(similarity, [labels[0], labels[2]], [1.0, 0.5])
    assert three.item() == two.item()


@pytest.mark.parametrize("kind", ["mmcl", "l2"])
@pytest.mark.parametrize("at_hand", [False, True])
def test_fused_equals_the_two_steps(kind, at_hand):
    memory = clustered_features(300, 16)
    features = clustered_features(7, 16, seed=4).bfloat16().requires_grad_()
    again = features.detach().clone().requires_grad_()
    _, labels, weights = problem(7, 300, 3)
    loss = sk.mutual_label_loss(sk.memory_similarity(features, memory), labels, weights, kind=kind)
    similarity = sk.memory_similarity(again, memory) if at_hand else None
    fused = sk.fused_mutual_label_loss(again, memory, labels, weights, similarity=similarity, kind=kind)
    assert fused.item() == pytest.approx(loss.item(), rel=1e-6)
    (3 * loss).backward()
    (3 * fused).backward()
    assert features.grad.dtype == torch.bfloat16
    torch.testing.assert_close(again.grad, features.grad, rtol=1e-2, atol=1e-4)


def test_empty_batch_gives_zero():
    labels = torch.zeros(0, 16, dtype=torch.uint8)
    for kind in ("mmcl", "l2"):
        similarity = torch.zeros(0, 20, requires_grad=True)
        loss = sk.mutual_label_loss(similarity, [labels], [1.0], kind=kind)
        assert loss.item() == 0.0
        loss.backward()
        assert similarity.grad.shape == (0, 20)


def test_second_derivatives_are_refused():
    similarity, labels, weights = problem(2, 20, 1)
    similarity = similarity.float().requires_grad_()
    loss = sk.mutual_label_loss(similarity, labels, weights)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(loss, similarity, create_graph=True)
