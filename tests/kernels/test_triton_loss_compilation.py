"""The Triton kernels of the losses compiled for every architecture of a release.

What ``test_triton_compilation.py`` says of configurations holds here. Three label sets, which
take the most registers, are compiled for all of them, one and two as products are made by default on 9.0, or for all
with ``SNNET_ALL_CONFIGURATIONS=1``. "bf16" is "ieee" here.
"""

import pytest

from tests.kernels import triton_ahead as ahead


@pytest.fixture(autouse=True)
def compiler():
    ahead.require_compiler()


@pytest.mark.parametrize(
    ("architecture", "precision", "tile"), ahead.configurations("ieee", "tf32x3", "tf32")
)
def test_losses(architecture, precision, tile):
    few = (1, 2) if ahead.EVERYTHING or (architecture, precision, tile) == (90, "ieee", 0) else ()
    for sets in (*few, 3):
        with ahead.compiling(architecture, precision, tile) as compiled:
            ahead.call_losses(precision, sets)
        assert len(compiled) == 6
        for kernel in compiled:
            ahead.check(kernel, is_default=tile == 0)


def test_rows_of_odd_length():
    """They are read without vectors."""
    with ahead.compiling(80, "ieee", 0) as compiled:
        ahead.call_losses("ieee", 3, d=33)
    for kernel in compiled:
        ahead.check(kernel, is_default=True)
