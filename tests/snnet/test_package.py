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


def test_importing_the_package_does_not_import_torch():
    program = "import sys, snnet; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
