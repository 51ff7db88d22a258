"""The tests for a GPU, run without one: everything between the face of the package and the hardware is what serves
CUDA tensors, in a process of its own."""

import importlib.util

import pytest

from tests.forks import run_pytest
from tests.kernels.cuda_on_cpu import compiler


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("chosen", "least"), [("labels_small", 14), ("not labels_small", 49)])
def test_everything_that_serves_a_gpu(chosen, least):
    """In two parts of about the same length, which two processes share."""
    compiler()
    files = ("tests/kernels/test_gpu.py", "tests/kernels/test_gpu_head.py")
    passed, output = run_pytest(
        *("-p", "tests.kernels.cuda_on_cpu.as_cuda", *files, "-k", chosen),
        SNNET_BACKEND="reference",
        SNNET_TEST_DEVICE="cpu",
        TRITON_INTERPRET="1",
    )
    assert passed >= least, output  # fewer: some were skipped
