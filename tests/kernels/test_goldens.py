"""The operations against the MMCL authors' numbers: labels to the bit, losses and gradients to 1e-5."""

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import reference
from tests.kernels.list_checks import check_lists, symmetric_lists


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


FORMS = {
    "op": sk.mplp,
    "lists": lambda memory, *rest: sk.mplp(memory, *rest, lists=sk.neighbor_lists(memory, 64)),
    "vector": reference.mplp,
    "vector, cached": lambda memory, *rest: reference.mplp(memory, *rest, cache=memory @ memory.t()),
    "loop": reference.loop.mplp,
}


@pytest.mark.parametrize("predict", FORMS.values(), ids=FORMS)
def test_labels_are_the_authors(golden, predict):
    memory, n = golden["memory"], golden["memory"].shape[0]
    labels = predict(memory, golden["index"], float(golden["threshold"]))
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


@pytest.mark.parametrize("listed", [False, True], ids=["alone", "with lists"])
def test_memory_update_is_the_authors(golden, listed):
    memory = golden["memory"].clone()
    lists = symmetric_lists(memory, 64) if listed else None
    sk.update_memory_(memory, golden["index"], golden["features"], golden["momentum"], lists=lists)
    assert (memory - golden["memory_after"]).abs().max() < 1e-6
    if lists is not None:
        check_lists(lists, memory.double() @ memory.double().t(), 2e-6)
