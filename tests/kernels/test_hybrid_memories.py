"""``compat.hybrid`` against numbers of SpCL's and DCMIP's own code, run on the CPU.

``spcl/...``: two steps of ``HybridMemory`` (yxgeee/SpCL 01a486e; temp 0.05, momentum 0.2): images that repeat,
classes of one image and one without. ``dcmip/...``: two steps of ``ClusterMemory`` (Trangle12/DCMIP dfe3563, mode
CMhybrid; temp 0.05, momentum 0.1), as it stands (``mean``), with its lines for Market-1501 in place of those for MSMT17
(``hard``), and near the first proxies, whose loss is below the margin (``near``).
"""

import numpy as np
import pytest
import torch

from snnet_kernels.compat import cluster_contrast
from snnet_kernels.compat.hybrid import ClusterMemory, HybridMemory
from tests.paths import DATA

GOLDEN = {key: torch.from_numpy(value) for key, value in np.load(DATA / "hybrid_reference.npz").items()}


def spcl() -> HybridMemory:
    memory = HybridMemory(12, 40, temp=0.05, momentum=0.2)
    assert not memory.features.any() and not memory.labels.any()
    memory.features, memory.labels = GOLDEN["spcl/start"].clone(), GOLDEN["spcl/labels"].clone()
    return memory


def dcmip(start: str, **options) -> ClusterMemory:
    memory = ClusterMemory(12, 9, temp=0.05, momentum=0.1, **options)
    assert memory.features.shape == (18, 12) and not memory.features.any()
    memory.features = GOLDEN[start].clone()
    return memory


CASES = {
    "spcl": (spcl, "spcl/inputs", "spcl/indexes"),
    "dcmip/mean": (lambda: dcmip("dcmip/start"), "dcmip/inputs", "dcmip/targets"),
    "dcmip/hard": (lambda: dcmip("dcmip/start", use_hard=True), "dcmip/inputs", "dcmip/targets"),
    "dcmip/near": (lambda: dcmip("dcmip/near/start"), "dcmip/near/inputs", "dcmip/targets"),
}


@pytest.mark.parametrize("name", CASES)
def test_two_steps_are_theirs(name):
    make, inputs_key, targets_key = CASES[name]
    memory = make()
    for step in range(2):
        inputs = GOLDEN[inputs_key][step].clone().requires_grad_()
        before = memory.features.clone()
        loss = memory(inputs, GOLDEN[targets_key][step])
        expected = {part: GOLDEN[f"{name}/{step}/{part}"] for part in ("loss", "grad", "features")}
        torch.testing.assert_close(loss.detach(), expected["loss"], rtol=2e-5, atol=0)
        assert torch.equal(memory.features, before)  # it learns in the backward pass
        loss.backward()
        scale = float(expected["grad"].abs().max())
        torch.testing.assert_close(inputs.grad, expected["grad"], rtol=0, atol=2e-5 * scale)
        torch.testing.assert_close(memory.features, expected["features"], rtol=0, atol=1e-6)


def test_a_memory_of_no_images_takes_no_inputs():
    memory = HybridMemory(8, 0)
    assert memory(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)).isnan()  # a mean of nothing
    with pytest.raises(ValueError, match=r"indexes must lie in \[0, 0\), got 0"):
        memory(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("name", CASES)
def test_without_gradient_nothing_is_learnt(name):
    make, inputs_key, targets_key = CASES[name]
    memory = make()
    before = memory.features.clone()
    with torch.no_grad():
        loss = memory(GOLDEN[inputs_key][0], GOLDEN[targets_key][0])
    assert loss.item() == pytest.approx(GOLDEN[f"{name}/0/loss"].item(), rel=2e-5)
    assert torch.equal(memory.features, before)


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_half_precision_are_taken(name):
    """As autocast hands them over."""
    make, inputs_key, targets_key = CASES[name]
    memory = make()
    inputs = GOLDEN[inputs_key][0].bfloat16().requires_grad_()
    memory(inputs, GOLDEN[targets_key][0]).backward()
    assert inputs.grad.dtype == torch.bfloat16
    torch.testing.assert_close(memory.features, GOLDEN[f"{name}/0/features"], rtol=0, atol=2e-2)


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="mode must be 'CMhybrid', got 'CMhard': CM is the ClusterMemory of compat"
    ):
        ClusterMemory(12, 9, mode="CMhard")
    inputs = GOLDEN["dcmip/inputs"][0]
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 9\), got 9"):  # a row of the second half
        dcmip("dcmip/start")(inputs, torch.full((16,), 9))
    with pytest.raises(ValueError, match=r"indexes must lie in \[0, 40\), got 40"):
        spcl()(inputs, torch.full((16,), 40))
    memory = spcl()
    memory.labels[3] = -1
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2147483648\), got -1"):
        memory(inputs, torch.arange(16))
    assert list(memory.state_dict()) == ["features", "labels"]


@pytest.mark.parametrize("made", [HybridMemory, ClusterMemory, cluster_contrast.ClusterMemory])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features must be an integer of at least 1, got 0"),
        ({"num_samples": -1}, ValueError, "num_samples must be an integer of at least 0, got -1"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an integer, got float"),
        ({"temp": 0}, ValueError, "temp must be above 0, got 0"),
        ({"temp": float("nan")}, ValueError, "temp must be finite, got nan"),
        ({"momentum": 1.5}, ValueError, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"momentum": "0.2"}, TypeError, "momentum must be a number, got str"),
    ],
)
def test_a_memory_that_cannot_be_is_named_when_it_is_made_and_when_it_is_used(made, change, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        made(**{"num_features": 3, "num_samples": 4, **change})
    assert made(3, np.int64(0)).features.shape == (0, 3)
    if "temp" in change or "momentum" in change:
        memory = made(3, 4)
        for name, value in change.items():
            setattr(memory, name, value)
        with pytest.raises(error, match=f"^{message}$"):
            memory(torch.eye(3), torch.arange(3))
