"""The mutual label loss: against the per-sample form, by gradcheck, at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels import extreme_losses


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
