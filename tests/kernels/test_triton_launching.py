"""The choice of a tile: what is measured, and for whom it counts."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from snnet_kernels import reference
from snnet_kernels.triton.common import launching
from snnet_kernels.triton.common.launching import TILES
from snnet_kernels.triton.hard_negative_loss import hard_negative_loss
from snnet_kernels.triton.square_loss import square_loss

DEVICE = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """The tiles whose time was taken, by a clock that prefers the last."""
    taken = []

    def milliseconds(device, run):
        taken.append(run())
        return -len(taken)

    monkeypatch.setattr(launching, "_measurable", lambda device: True)
    monkeypatch.setattr(launching, "_milliseconds", milliseconds)
    monkeypatch.setattr(launching, "_fastest", {})
    return taken


def test_a_tile_is_measured_once_for_a_kernel_and_sizes_of_one_magnitude(measured):
    def chosen(kernel, *sizes):
        return launching.with_fastest_tile(kernel, TILES["tf32"], DEVICE, sizes, lambda tile: tile)

    assert chosen(("a", 1), 64, 1000) == TILES["tf32"][-1] and measured == list(TILES["tf32"])
    assert chosen(("a", 1), 65, 600) == TILES["tf32"][-1] and len(measured) == 2
    chosen(("a", 2), 64, 1000)
    assert len(measured) == 4
    chosen(("a", 2), 64, 2000)
    assert len(measured) == 6


@pytest.mark.parametrize(("loss", "options"), [(square_loss, ()), (hard_negative_loss, (5.0, 0.01))])
def test_a_loss_is_measured_for_its_number_of_label_sets(loss, options, monkeypatch):
    """Each is a kernel of its own."""
    kernels = []
    monkeypatch.setattr(
        launching, "with_fastest_tile", lambda kernel, *rest: kernels.append(kernel) or (None, None)
    )
    labels = reference.pack_labels(torch.zeros(2, 9, dtype=torch.bool))
    for sets in (1, 3):
        loss(torch.ones(2, 4), torch.ones(9, 4), [labels] * sets, [1.0] * sets, *options, "tf32")
    assert kernels == [(loss.__name__, "tf32", 1), (loss.__name__, "tf32", 3)]
