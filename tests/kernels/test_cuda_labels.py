"""The CUDA label kernels, run on CPU tensors by the emulation, against the reference: every bit equal."""

import pytest
import torch

from snnet_kernels import reference

# Around the borders of a byte, of a 16-byte word, of a block.
SIZES = [1, 7, 9, 127, 128, 129, 1025]


@pytest.mark.parametrize("n", SIZES)
def test_pack_and_unpack(cuda_on_cpu, n):
    flags = torch.rand(5, n, generator=torch.Generator().manual_seed(n)) < 0.3
    packed = cuda_on_cpu.operations.pack_labels(flags)
    assert torch.equal(packed, reference.pack_labels(flags))
    assert torch.equal(cuda_on_cpu.operations.unpack_labels(packed, n), flags)
