"""The Triton kernels compiled for 8.0, 9.0, 10.0 and 12.0.

Each is compiled as the host's side launches it (see ``triton_ahead``): for 9.0 in every precision with every tile, for
the other architectures in all but "tf32" with the default tile. With ``SNNET_ALL_CONFIGURATIONS=1`` in the environment
it is everything for all of them, but for 12.0 with the default tiles alone. Losses of three label sets, which take the
most registers, are compiled for all of these; of one and two as products are made by default on 9.0, or everything,
too. "bf16" is "ieee" in the losses.
"""

import os
import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from snnet_kernels import reference
from snnet_kernels.triton.common.launching import OLD_TRITON, TILES
from snnet_kernels.triton.hard_negative_loss import hard_negative_loss
from snnet_kernels.triton.label_prediction import mplp
from snnet_kernels.triton.neighbors import nearest_neighbors
from snnet_kernels.triton.similarity import memory_similarity
from snnet_kernels.triton.square_loss import square_loss
from tests.kernels import triton_ahead as ahead

pytestmark = pytest.mark.filterwarnings("error")  # as of a default of Triton's that is going to change

EVERYTHING = os.environ.get("SNNET_ALL_CONFIGURATIONS") == "1"


def configurations(*precisions: str) -> list[Any]:
    """(architecture, precision, number of the tile) of what is compiled, for ``pytest.mark.parametrize``.

    For 9.0 everything. For the others the default tiles of all but "tf32": those of "tf32x3" have the same rows
    and columns and make three products with the same instructions. That shared memory fits is seen for 9.0. A tile
    that does not fit into that of 12.0 is not taken there: only the default ones are compiled for it.
    Triton before 3.8 ends with an error of its own for 10.0 and 12.0.
    """
    return [
        pytest.param(
            architecture, precision, number, id=f"{architecture}-{precision}-{tile.rows}x{tile.columns}"
        )
        for architecture in ahead.MOST_SHARED
        for precision in precisions
        for number, tile in enumerate(TILES[precision])
        if architecture == 90
        or (EVERYTHING and (number == 0 or architecture != 120))
        or (number == 0 and precision != "tf32")
        if not (OLD_TRITON and architecture >= 100)
    ]


def inputs(d: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [B, d], memory [n, d] and index [B]. Of their sizes only what they are multiples of counts."""
    generator = torch.Generator().manual_seed(0)
    features, memory = (torch.randn(rows, d, generator=generator) for rows in (64, 1000))
    return features, memory, torch.arange(64)


def call_labels(precision: str, d: int = 64, given: bool = True) -> None:
    """Everything but the losses; unless ``given``, only what reads rows of length d."""
    features, memory, index = inputs(d)
    if precision == "tf32x3":
        memory_similarity(features, memory)
    for query_rows in (None, torch.zeros(len(index), len(memory)))[: 1 + given]:
        mplp(memory, index, query_rows, 0.6, 10, precision=precision)
        for k in (1, 5):
            nearest_neighbors(memory, index, query_rows, k, precision=precision)


def call_losses(precision: str, sets: int, d: int = 64) -> None:
    features, memory, _ = inputs(d)
    labels = [reference.pack_labels(torch.zeros(len(features), len(memory), dtype=torch.bool))] * sets
    square_loss(features, memory, labels, [1.0] * sets, precision)
    hard_negative_loss(features, memory, labels, [1.0] * sets, 5.0, 0.01, precision)


@pytest.fixture(autouse=True)
def compiler():
    ahead.require_compiler()


@pytest.mark.parametrize(
    ("architecture", "precision", "tile"), configurations("ieee", "tf32x3", "tf32", "bf16")
)
def test_labels_and_neighbors(architecture, precision, tile):
    with ahead.compiling(architecture, precision, tile) as compiled:
        call_labels(precision)
    assert len(compiled) >= 16
    for kernel in compiled:
        ahead.check(kernel, is_default=tile == 0)


@pytest.mark.parametrize(("architecture", "precision", "tile"), configurations("ieee", "tf32x3", "tf32"))
def test_losses(architecture, precision, tile):
    few = (1, 2) if EVERYTHING or (architecture, precision, tile) == (90, "ieee", 0) else ()
    for sets in (*few, 3):
        with ahead.compiling(architecture, precision, tile) as compiled:
            call_losses(precision, sets)
        assert len(compiled) == 6
        for kernel in compiled:
            ahead.check(kernel, is_default=tile == 0)


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        pytest.param(lambda: call_labels("ieee", d=33, given=False), 8, id="labels"),
        pytest.param(lambda: call_losses("ieee", 3, d=33), 6, id="losses"),
    ],
)
def test_rows_of_odd_length(call, kernels):
    """They are read without vectors."""
    with ahead.compiling(80, "ieee", 0) as compiled:
        call()
    assert len(compiled) >= kernels
    for kernel in compiled:
        ahead.check(kernel, is_default=True)


def test_three_tf32_products_are_added_up_in_float32():
    """In one sum of the tensor cores, which cut off, those of many dimensions would be too small."""
    with ahead.compiling(90, "tf32x3", 0) as compiled:
        call_labels("tf32x3", given=False)
    (kernel,) = [kernel for kernel in compiled if kernel.name == "candidate_kernel"]
    entries = kernel.options["BLOCK_A"] * kernel.options["BLOCK_B"] // (32 * kernel.options["num_warps"])
    assert len(re.findall(r"\badd\.(?:rn\.)?f32\b", kernel.ptx)) == entries


def test_every_kernel_is_compiled_by_one_of_these_tests():
    def everything():
        for precision in TILES:
            call_labels(precision)
            call_losses(precision, 3)

    names = ahead.kernel_names()
    assert len(names) >= 18
    assert ahead.launched_names(everything) == names
