"""The CUDA update of the memory, run on CPU tensors by the emulation, against the reference and float64."""

import pytest
import torch
from torch import Tensor

from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import batch_of


@pytest.fixture(scope="module")
def update(cuda_on_cpu):
    return cuda_on_cpu.operations.update_memory_


def test_rows_that_come_once_have_the_arithmetic_of_the_blend(cuda_on_cpu, update):
    memory, index = clustered_features(60, 24), torch.randperm(60)[:45]
    features, alpha = clustered_features(45, 24, seed=1), torch.tensor(0.37)
    blended = alpha * memory[index] + (1 - alpha) * features
    lengths = blended.double().square().sum(1).sqrt().float()
    cuda_on_cpu.launches()
    update(memory, index, features, alpha)
    assert cuda_on_cpu.launches() == 1
    assert torch.equal(memory[index], blended / lengths[:, None])


@pytest.mark.parametrize(("n", "batch", "d"), [(90, 600, 6), (40, 13, 4200)])
def test_a_batch_beyond_one_block_of_threads_and_rows_beyond_shared_memory(update, n, batch, d):
    memory, index = clustered_features(n, d), batch_of(n, batch, 0)
    features = clustered_features(batch, d, seed=1)
    expected = memory.double()
    reference.loop.update_memory_(expected, index, features.double(), 0.3)
    update(memory, index, features, torch.tensor(0.3))
    assert (memory - expected).abs().max() < 1e-6


def test_index_values_out_of_range_are_skipped(update):
    memory, features = clustered_features(64, 8), clustered_features(7, 8, seed=1)
    index, valid = torch.tensor([5, -1, 64, 5, 2**40, 0, -(2**62)]), torch.tensor([0, 3, 5])
    expected, momentum = memory.clone(), torch.tensor(0.5)
    update(memory, index, features, momentum)
    update(expected, index[valid], features[valid], momentum)
    assert torch.equal(memory, expected)


@pytest.mark.parametrize("d", [8, 4300])  # with the blend in shared memory, and made twice
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_rows_that_are_not_finite_are_not_written(update, d, alpha):
    """Alone, between good ones of the same index, and all of an index."""
    memory = clustered_features(140, d)
    if alpha == 0:
        memory[[4, 130]] = torch.nan  # what stood there does not count
    index = torch.tensor([4, 9, 4, 77, 9, 4, 100, 130])
    features = clustered_features(8, d, seed=1)
    features[2, 3], features[1, 0], features[4, -1], features[6] = torch.nan, torch.inf, -torch.inf, 3e38
    momentum = torch.tensor(alpha)
    expected, before = memory.clone(), memory.clone()
    for at in (0, 3, 5, 7):
        reference.update_memory_(expected, index[at : at + 1], features[at : at + 1], momentum)
    update(memory, index, features, momentum)
    assert torch.equal(memory[[9, 100]], before[[9, 100]])
    assert (memory - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": torch.zeros(30, 8).t()}, "memory must be contiguous"),
        ({"index": torch.zeros(3, dtype=torch.int32)}, "index must be torch.int64"),
        ({"features": torch.zeros(3, 9)}, "features must have shape"),
        ({"momentum": torch.zeros(1)}, "momentum must be a 0-d float32 tensor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(update, change, message):
    arguments: dict[str, Tensor] = {
        "memory": torch.zeros(8, 30),
        "index": torch.zeros(3, dtype=torch.int64),
        "features": torch.zeros(3, 30),
        "momentum": torch.tensor(0.5),
        **change,
    }
    with pytest.raises((ValueError, RuntimeError), match=message):
        update(*arguments.values())
