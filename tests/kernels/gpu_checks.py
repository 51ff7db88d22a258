"""What the tests for a GPU share: the device, inputs, and how close results are.

``SNNET_TEST_DEVICE=cpu`` says that the CUDA kernels are emulated (see cuda_on_cpu).
"""

import os

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.ops.neighbor_lists import symmetric_lists

DEVICE = os.environ.get("SNNET_TEST_DEVICE", "cuda")
REAL = DEVICE != "cpu"
on_gpu_only = pytest.mark.skipif(not REAL, reason="needs a CUDA device")
# n odd, rows of 16-byte multiples or not, rows larger and smaller than a block
SIZES = [(1, 5), (7, 3), (90, 12), (257, 33)] + ([(1000, 64), (2049, 130), (12_936, 256)] if REAL else [])
WEIGHTS = [1.0, 0.8, 0.6]


def poison() -> None:
    """Blocks of the GPU are filled with NaN and freed; the allocator hands them out again."""
    for count, size in ((64, 1 << 17), (8, 1 << 24)):  # of both its pools
        [torch.full((size,), torch.nan, device=DEVICE) for _ in range(count)]


def on_device(*tensors):
    return [tensor if tensor is None else tensor.to(DEVICE, copy=True) for tensor in tensors]


def assert_close(ours: torch.Tensor, exact: torch.Tensor, bound: float = 2e-6) -> None:
    error = (ours.cpu().double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-30)
    assert error < bound


def lists_on_device(memory: torch.Tensor, k: int, capacity: int) -> NeighborLists:
    """Symmetric lists of a memory [n, d] that is on the device."""
    n = len(memory)
    nearest = sk.neighbor_lists(memory, min(k, n))
    return NeighborLists(*symmetric_lists(*nearest[:4], min(capacity, n)))
