"""The operations against the MMCL authors' numbers: labels to the bit, losses and gradients to 1e-5."""

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import reference


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("cached", [False, True], ids=["streaming", "cached"])
@pytest.mark.parametrize(
    "predict", [sk.mplp, reference.mplp, reference.loop.mplp], ids=["op", "vector", "loop"]
)
def test_labels_are_the_authors(golden, predict, cached):
    memory, n = golden["memory"], golden["memory"].shape[0]
    cache = sk.build_similarity_cache(memory) if cached else None
    labels = predict(memory, golden["index"], float(golden["threshold"]), cache=cache)
    assert torch.equal(sk.unpack_labels(labels, n), golden["multilabel"])


def test_goldens_need_the_cycle_check(golden):
    """In at least the harder cases thresholding alone would give other labels."""
    similarity = golden["memory"][golden["index"]] @ golden["memory"].t()
    candidates = similarity > golden["threshold"]
    if golden["memory"].shape[0] in (800, 500):
        rejected = (candidates & ~golden["multilabel"]).sum() / candidates.sum()
        assert rejected > 0.2


@pytest.mark.parametrize("at_hand", [False, True])
def test_loss_and_gradient_are_the_authors(golden, at_hand):
    features = golden["features"].clone().requires_grad_()
    labels = [sk.pack_labels(golden["multilabel"])]
    similarity = sk.memory_similarity(features, golden["memory"])
    loss = (
        sk.fused_mutual_label_loss(features, golden["memory"], labels, [1.0], similarity=similarity)
        if at_hand
        else sk.mutual_label_loss(similarity, labels, [1.0])
    )
    loss.backward()
    assert relative(loss.detach(), golden["mmcl_loss"]) < 1e-5
    assert relative(features.grad, golden["mmcl_grad_features"]) < 1e-5


@pytest.mark.parametrize("cached", [False, True], ids=["alone", "with cache"])
def test_memory_update_is_the_authors(golden, cached):
    memory = golden["memory"].clone()
    cache = sk.build_similarity_cache(memory) if cached else None
    sk.update_memory_(memory, golden["index"], golden["features"], golden["momentum"], cache=cache)
    assert (memory - golden["memory_after"]).abs().max() < 1e-6
    if cache is not None:
        exact = memory.double() @ memory.double().t()
        assert (cache - exact).abs().max() < 2e-6
