"""``compat.cluster_contrast`` against numbers of cluster-contrast's own code (see ``test_jaccard_graph.py``).

``memory/...``: two steps of its ``ClusterMemory`` (temp 0.05, momentum 0.2) on the CPU, targets that repeat, two inputs
that are equal; loss, gradient of the inputs, and the memory after each backward pass.
"""

import numpy as np
import pytest
import torch

from snnet_kernels import ops, reference
from snnet_kernels.compat.cluster_contrast import ClusterMemory, compute_jaccard_distance
from tests.paths import DATA

GOLDEN = {key: torch.from_numpy(value) for key, value in np.load(DATA / "cluster_reference.npz").items()}


def memory_of(features: torch.Tensor, **options) -> ClusterMemory:
    memory = ClusterMemory(features.shape[1], len(features), temp=0.05, momentum=0.2, **options)
    assert not memory.features.any()
    memory.features = features.clone()
    return memory


@pytest.mark.parametrize("use_hard", [False, True], ids=["mean", "hard"])
def test_cluster_memory_is_theirs_over_two_steps(use_hard):
    memory = memory_of(GOLDEN["memory/start"], use_hard=use_hard)
    for step in range(2):
        inputs = GOLDEN["memory/inputs"][step].clone().requires_grad_()
        loss = memory(inputs, GOLDEN["memory/targets"][step])
        before = memory.features.clone()
        expected = {
            name: GOLDEN[f"memory/{'hard' if use_hard else 'mean'}/{step}/{name}"]
            for name in ("loss", "grad", "features")
        }
        torch.testing.assert_close(loss.detach(), expected["loss"], rtol=1e-5, atol=0)
        assert torch.equal(memory.features, before)  # it learns in the backward pass
        loss.backward()
        torch.testing.assert_close(inputs.grad, expected["grad"], rtol=0, atol=1e-5)
        torch.testing.assert_close(memory.features, expected["features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("use_hard", [False, True], ids=["mean", "hard"])
def test_a_memory_without_gradient_learns_nothing(use_hard):
    memory = memory_of(GOLDEN["memory/start"], use_hard=use_hard)
    with torch.no_grad():
        loss = memory(GOLDEN["memory/inputs"][0], GOLDEN["memory/targets"][0])
    assert loss.item() == pytest.approx(GOLDEN["memory/mean/0/loss"].item(), rel=1e-5)
    assert torch.equal(memory.features, GOLDEN["memory/start"])
    assert list(memory.state_dict()) == ["features"]


@pytest.mark.parametrize("use_hard", [False, True], ids=["mean", "hard"])
def test_a_row_that_would_not_be_finite_stays(use_hard):
    memory = memory_of(GOLDEN["memory/start"], use_hard=use_hard)
    inputs = GOLDEN["memory/inputs"][0][:2].clone()
    inputs[0] = torch.nan
    inputs.requires_grad_()
    memory(inputs, torch.tensor([5, 1])).backward()
    changed = (memory.features != GOLDEN["memory/start"]).any(1).nonzero().flatten()
    assert changed.tolist() == [1] and memory.features.isfinite().all()


def test_the_first_of_equal_inputs_is_the_hardest():
    """Inputs 0 and 2 are equally far from the centre, at either side of it."""
    memory = memory_of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), use_hard=True)
    inputs = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.6, -0.8]], requires_grad=True)
    memory(inputs, torch.tensor([0, 0, 0])).backward()
    expected = torch.nn.functional.normalize(torch.tensor([0.2 + 0.8 * 0.6, 0.8 * 0.8]), dim=0)
    torch.testing.assert_close(memory.features[0], expected, rtol=0, atol=1e-6)
    assert memory.features[1].tolist() == [0, 1]


@pytest.mark.parametrize("update_", [ops.update_memory_by_hardest_, reference.update_memory_by_hardest_])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_the_hardest_entry_of_each_row_in_float64(update_, momentum):
    """Against a loop, on rows of exact products with many ties, a zero row, an entry that is NaN, and none at all."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.where(torch.rand(12, 16, generator=generator) < 0.5, 0.25, -0.25)
    memory[3] = 0
    features = torch.where(torch.rand(50, 16, generator=generator) < 0.5, 0.25, -0.25)
    index = torch.randint(12, (50,), generator=generator)
    features[7] = torch.nan
    expected = memory.double()
    for i in index.unique().tolist():
        entries = (index == i).nonzero().flatten().tolist()
        similarity = [float(features[b].double() @ memory[i].double()) for b in entries]
        hardest = entries[int(np.argmin(similarity))]  # the first of equals, and NaN is the least
        blend = momentum * memory[i].double() + (1 - momentum) * features[hardest].double()
        if blend.isfinite().all():
            expected[i] = blend / max(float(blend.norm()), 1e-12)
    got = memory.clone()
    update_(got, index, features, momentum)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(got[index[7]], memory[index[7]])
    update_(got, index[:0], features[:0], momentum)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e20, 1e30, 3e38])
def test_inputs_whose_squares_overflow_are_of_length_1(scale):
    """Of the last even the length overflows: its row stays."""
    memory = torch.eye(5, 8)
    inputs, index = torch.full((1, 8), scale), torch.tensor([2])
    rows = []
    for update_ in (ops.update_memory_by_hardest_, reference.update_memory_by_hardest_):
        rows.append(memory.clone())
        update_(rows[-1], index, inputs, torch.tensor(0.2))
    expected = memory[2] if scale > 1e38 else torch.full((8,), 8**-0.5)
    for row in rows:
        torch.testing.assert_close(row[2], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(*rows, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (torch.rand(3, 10), torch.tensor([0, 1, 9]), ValueError, r"targets must lie in \[0, 9\), got 9"),
        (torch.rand(3, 10), torch.tensor([0, 1]), ValueError, "targets must have 3 entries, got 2"),
        (torch.rand(3, 10), torch.rand(3), TypeError, "targets must be torch.int64, got torch.float32"),
        (torch.rand(10), torch.tensor([0]), ValueError, r"inputs must have 2 dimensions \[B, d\]"),
        (torch.rand(3, 11), torch.tensor([0, 1, 2]), ValueError, r"inputs must have shape \[B, 10\]"),
    ],
)
def test_wrong_arguments_are_named(inputs, targets, error, message):
    with pytest.raises(error, match=message):
        memory_of(GOLDEN["memory/start"])(inputs, targets)


def test_compute_jaccard_distance_is_theirs(capsys):
    pytest.importorskip("scipy")
    features, expected = GOLDEN["features_clustered"], GOLDEN["cluster_contrast/clustered/10/3"].numpy()
    got = compute_jaccard_distance(features, 10, 3, True, 3, False)
    assert capsys.readouterr().out.startswith("Jaccard distances of 80 images: ")
    dense = np.ones_like(expected)
    assert got.format == "csr" and got.dtype == np.float32
    coordinates = got.tocoo()
    dense[coordinates.row, coordinates.col] = coordinates.data
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-6)
    near = compute_jaccard_distance(features, k1=10, k2=3, print_flag=False, max_distance=0.5)
    assert capsys.readouterr().out == ""
    assert near.nnz == (dense <= 0.5).sum() > 500
