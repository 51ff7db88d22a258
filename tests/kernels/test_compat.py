"""A trainer in the style of the MMCL authors', on the package: their classes, their call order, their numbers."""

import pytest
import torch

from snnet_kernels.compat import MMCL, MPLP, Memory


def test_a_training_step_gives_the_goldens(golden):
    n, d = golden["memory"].shape
    inputs = golden["features"].clone().requires_grad_()
    targets = golden["index"]
    memory = Memory(d, n)
    memory.mem.data.copy_(golden["memory"])
    criterion, labelpred = MMCL(), MPLP(float(golden["threshold"]))
    epoch = float(golden["momentum"]) * 60 / 0.5

    logits = memory(inputs, targets, epoch=epoch)
    multilabel = labelpred.predict(memory.mem.detach().clone(), targets.detach().clone())
    loss = criterion(logits, multilabel, is_vec=True)
    assert torch.equal(memory.mem.data, golden["memory"])  # unchanged until backward
    loss.backward()

    assert multilabel.dtype == torch.float32
    assert torch.equal(multilabel.bool(), golden["multilabel"])
    assert loss.item() == pytest.approx(golden["mmcl_loss"].item(), rel=1e-5)
    scale = golden["mmcl_grad_features"].abs().max()
    assert (inputs.grad - golden["mmcl_grad_features"]).abs().max() < 1e-5 * scale
    assert (memory.mem.data - golden["memory_after"]).abs().max() < 1e-6


def test_single_class_targets():
    """Before labels are predicted the original trains on instance numbers."""
    inputs = torch.rand(4, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    targets = torch.tensor([7, 0, 299, 7])
    loss = MMCL()(inputs, targets)
    expected = 0.0
    for row, target in zip(inputs, targets.tolist(), strict=True):
        negatives = torch.cat([row[:target], row[target + 1 :]])
        hard = negatives.sort(descending=True).values[:2]  # floor(0.01 * 299)
        expected += (5 * (1 - row[target]) ** 2 + (1 + hard).square().mean()).item() / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_memory_starts_empty_and_takes_features_up():
    memory = Memory(8, 20)
    assert not memory.mem.any() and not memory.mem.requires_grad
    inputs = torch.nn.functional.normalize(torch.randn(3, 8), dim=1).requires_grad_()
    memory(inputs, torch.tensor([4, 5, 4]), epoch=0).sum().backward()
    assert torch.equal(memory.mem.any(1).nonzero().flatten(), torch.tensor([4, 5]))
    assert (memory.mem[4] - inputs[2].detach()).abs().max() < 1e-6  # α = 0: the last one stays
    assert not inputs.grad.any()  # the memory was empty when the logits were made


def test_wrong_arguments_are_named():
    inputs, targets = torch.rand(6, 50), torch.arange(6)
    with pytest.raises(ValueError, match=r"targets must have the shape of inputs \(6, 50\), got \(6, 49\)"):
        MMCL()(inputs, torch.zeros(6, 49), is_vec=True)
    with pytest.raises(TypeError, match=r"targets must be torch\.int64, got torch\.float32"):
        MMCL()(inputs, torch.zeros(6, 50))
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 50\), got 54"):
        MMCL()(inputs, targets + 49)
    memory = Memory(8, 20)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 20\), got 24"):
        memory(torch.rand(6, 8), targets + 19)
    with pytest.raises(ValueError, match="epoch must not be negative, got -5"):
        memory(torch.rand(6, 8), targets, epoch=-5)
