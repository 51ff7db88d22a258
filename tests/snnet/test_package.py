"""The package itself."""

import subprocess
import sys

import pytest

import snnet
import snnet_kernels


def test_version():
    assert snnet.__version__ == snnet_kernels.__version__
    with pytest.raises(AttributeError, match="no attribute 'verison'"):
        _ = snnet.verison


def test_imports_leave_out_what_takes_long():
    program = (
        "import sys, snnet; print('torch' in sys.modules);"
        "import snnet_kernels, torch; print('torch._dynamo' in sys.modules)"  # which takes as long as torch
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nFalse\n"
