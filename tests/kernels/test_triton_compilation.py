"""The Triton kernels of labels and neighbours compiled for every architecture of a release.

Each is compiled as the host's side launches it (see ``triton_ahead``): for 9.0 in every precision with every tile, for
the other architectures in all but "tf32" with the default tile, or everything for all of them with
``SNNET_ALL_CONFIGURATIONS=1`` in the environment.
The kernels of the losses are in ``test_triton_loss_compilation.py``, so that two processes share the work.
"""

import pytest

from tests.kernels import triton_ahead as ahead


@pytest.fixture(autouse=True)
def compiler():
    ahead.require_compiler()


@pytest.mark.parametrize(
    ("architecture", "precision", "tile"), ahead.configurations("ieee", "tf32x3", "tf32", "bf16")
)
def test_labels_and_neighbors(architecture, precision, tile):
    with ahead.compiling(architecture, precision, tile) as compiled:
        ahead.call_labels(precision)
    assert len(compiled) >= 16
    for kernel in compiled:
        ahead.check(kernel, is_default=tile == 0)


def test_rows_of_odd_length():
    """They are read without vectors."""
    with ahead.compiling(80, "ieee", 0) as compiled:
        ahead.call_labels("ieee", d=33, given=False)
    assert len(compiled) >= 8
    for kernel in compiled:
        ahead.check(kernel, is_default=True)


def test_every_kernel_is_compiled_by_one_of_these_tests():
    def everything():
        for precision in ahead.TILES:
            ahead.call_labels(precision)
            ahead.call_losses(precision, 3)

    names = ahead.kernel_names()
    assert len(names) >= 18
    assert ahead.launched_names(everything) == names
