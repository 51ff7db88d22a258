"""Losses of similarities that are not finite, for the tests of each backend."""

import itertools

import pytest
import torch
from torch import Tensor

from snnet_kernels import reference

CASES = pytest.mark.parametrize(
    ("kind", "value", "delta"),
    list(itertools.product(["mmcl", "l2"], [torch.inf, -torch.inf, torch.nan], [0.0, 5.0])),
)


def problem(value: float) -> tuple[Tensor, list[Tensor], list[float]]:
    """``value`` at a positive of both sets, of one, of none, and nowhere."""
    similarity = torch.linspace(-0.5, 0.9, 40).repeat(4, 1)
    flags = torch.zeros(2, 4, 40, dtype=torch.bool)
    flags[0, :, 3:6] = flags[1, :, 5:9] = True
    for row, column in enumerate((5, 3, 20)):
        similarity[row, column] = value
    return similarity, [reference.pack_labels(flag) for flag in flags], [1.0, 0.5]


def assert_as_the_reference(
    answers: list[tuple[Tensor, Tensor]], value: float, kind: str, delta: float
) -> None:
    """``answers``: loss and gradient of each row by itself."""
    similarity, labels, weights = problem(value)
    for row, (loss, grad) in enumerate(answers):
        part = slice(row, row + 1)
        expected = reference.mutual_label_loss_with_grad(
            similarity[part], [label[part] for label in labels], weights, kind, delta, 0.1
        )
        for name, got, wanted in zip(("loss", "gradient"), (loss, grad), expected, strict=True):
            torch.testing.assert_close(
                got,
                wanted,
                rtol=1e-6,
                atol=1e-7,
                equal_nan=True,
                msg=lambda m, n=name, r=row: f"{n} of row {r}: {m}",
            )
