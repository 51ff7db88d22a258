"""The tests for a GPU, run without one: everything between the face of the package and the hardware is what serves
CUDA tensors, in a process of its own."""

import importlib.util
import os

import pytest

from tests.forks import python
from tests.kernels.cuda_on_cpu import compiler


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("chosen", "tests"), [("labels_small", 14), ("not labels_small", 48)])
def test_everything_that_serves_a_gpu(chosen, tests):
    """In two parts of about the same length, which two processes share."""
    compiler()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "SNNET_BACKEND": "reference",
        "SNNET_TEST_DEVICE": "cpu",
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.kernels.cuda_on_cpu.as_cuda")
    files = ("tests/kernels/test_gpu.py", "tests/kernels/test_gpu_head.py")
    result = python(*command, *files, "-k", chosen, environment=environment)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert f"{tests} passed" in result.stdout, result.stdout[-500:]
