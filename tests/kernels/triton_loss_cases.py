"""Tests of the Triton kernels of the losses, interpreted; ``test_triton_interpreted.py`` runs them.

As in ``triton_label_cases``: products are exact, so that the hard negatives are those of the reference, and sizes leave
a part of every tile empty.
"""

import pytest
import torch

from benchmarks.label_flips import round_to_tf32
from snnet_kernels import reference
from snnet_kernels.triton.common import hardest_negatives, launching, loss_gradient
from snnet_kernels.triton.common.hardest_negatives import Sampling
from snnet_kernels.triton.hard_negative_loss import hard_negative_loss
from snnet_kernels.triton.square_loss import square_loss
from tests.kernels.inputs import exact_rows

TILES = [
    (precision, number)
    for precision in ("ieee", "tf32x3", "tf32")
    for number in range(len(launching.TILES[precision]))
]
WEIGHTS = [1.0, 0.8, 0.6]
SIZES = [(1, 1, 1), (3, 7, 5), (2, 131, 70), (2, 128, 64)]  # B, n, d


def sets_with_an_empty_and_a_full_row(batch: int, n: int, sets: int) -> list[torch.Tensor]:
    """Of the first set row 0 has no positives, of the second it has nothing else."""
    generator = torch.Generator().manual_seed(3)
    flags = [torch.rand(batch, n, generator=generator) < share for share in (0.05, 0.3, 0.6)]
    flags[0][0], flags[1][0] = False, True
    return [reference.pack_labels(flag) for flag in flags[:sets]]


def check(kind: str, batch: int, n: int, d: int, sets: int, precision: str, ratio: float = 0.03) -> None:
    features, memory = exact_rows(batch, d, 1), exact_rows(n, d)
    memory[-1] = features[0].sign()  # the last column is a hard one, and no other may take its place
    labels, weights = sets_with_an_empty_and_a_full_row(batch, n, sets), WEIGHTS[:sets]
    loss, slope = reference.mutual_label_loss_with_grad(
        (features @ memory.t()).double(), labels, weights, kind, 5.0, ratio
    )
    if kind == "l2":
        ours, gradient = square_loss(features, memory, labels, weights, precision)
    else:
        ours, gradient = hard_negative_loss(features, memory, labels, weights, 5.0, ratio, precision)
    rounded = round_to_tf32(slope.float()).double() if precision == "tf32" else slope
    expected = rounded @ memory.double()
    scale = expected.abs().amax(1, keepdim=True).clamp_min(0.1)
    # Slopes are rounded: of a few units of fp32 the sums are off at most, where the product takes them as they are.
    assert abs(float(ours) - float(loss)) <= 1e-6 * abs(float(loss))
    assert float(((gradient.double() - expected) / scale).abs().max()) < 3e-6


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("kind", ["l2", "mmcl"])
@pytest.mark.parametrize(("batch", "n", "d"), SIZES)
def test_loss(batch, n, d, kind, sets):
    check(kind, batch, n, d, sets, "ieee")


@pytest.mark.parametrize("kind", ["l2", "mmcl"])
def test_loss_of_two_tiles_of_rows(kind):
    check(kind, 66, 70, 5, 1, "ieee")


@pytest.mark.parametrize("kind", ["l2", "mmcl"])
@pytest.mark.parametrize(("precision", "tile"), TILES)
def test_loss_in_every_tile(precision, tile, kind, use_tile):
    use_tile(precision, tile)
    check(kind, 2, 150, 37, 2, precision)


@pytest.mark.parametrize("held", [64, 128])
@pytest.mark.parametrize("kind", ["l2", "mmcl"])
def test_loss_of_more_columns_than_are_held(kind, held, monkeypatch):
    """The slopes of a range are made in several turns; the last has fewer columns, or none that count."""
    monkeypatch.setattr(loss_gradient, "HELD", held)
    monkeypatch.setattr(loss_gradient, "PROGRAMS_PER_PROCESSOR", 1)
    check(kind, 2, 500, 12, 1, "ieee", 0.0)


def test_loss_of_sets_without_weight():
    features, memory = exact_rows(5, 12, 1), exact_rows(90, 12)
    labels = sets_with_an_empty_and_a_full_row(5, 90, 3)
    for loss in (square_loss, lambda *a: hard_negative_loss(*a, 5.0, 0.03)):
        all_sets = loss(features, memory, labels, [0.0, 1.0, 0.0])
        for ours, theirs in zip(all_sets, loss(features, memory, labels[1:2], [2.0]), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("n", [61, 90, 257])
def test_bits_past_the_columns_are_no_positives(n, sets):
    """As ``~labels`` sets them."""
    features, memory, weights = exact_rows(3, 12, 1), exact_rows(n, 12), WEIGHTS[:sets]
    clean = sets_with_an_empty_and_a_full_row(3, n, sets)
    past = ~reference.pack_labels(torch.ones(3, n, dtype=torch.bool))
    for loss in (square_loss, lambda *a: hard_negative_loss(*a, 5.0, 0.03)):
        expected, gradient = loss(features, memory, clean, weights)
        ours, other_gradient = loss(features, memory, [label | past for label in clean], weights)
        assert torch.equal(ours, expected) and torch.equal(other_gradient, gradient)


def test_loss_of_no_batch():
    for loss in (square_loss, lambda *a: hard_negative_loss(*a, 5.0, 0.03)):
        value, gradient = loss(
            exact_rows(0, 12), exact_rows(90, 12), sets_with_an_empty_and_a_full_row(1, 90, 1), [1.0]
        )
        assert value == 0 and gradient.shape == (0, 12)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("plan", ["none kept", "some rows too many", "all kept", "bars too high"])
def test_thresholds_that_are_found_digit_by_digit(plan, ratio, monkeypatch):
    """Whatever the sample lets through, the same entries are the hard negatives; columns of more than one digit."""
    plans = {
        "none kept": Sampling(1, 0, 0),
        "some rows too many": Sampling(1, 30, 32),
        "all kept": Sampling(1, 0, 300),
        "bars too high": Sampling(1, 1, 300),
    }
    monkeypatch.setattr(hardest_negatives, "sampling", lambda *_: plans[plan])
    check("mmcl", 2, 300, 9, 2 if ratio == 0.03 else 1, "ieee", ratio)
