"""Argument checks that several parts share; they raise a :class:`~snnet.errors.UserError` that names the argument."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from snnet.errors import UserError

UNIT_SLACK = 1e-3  # how far from 1 the norm of a feature may be
HALF_UNIT_SLACK = 1e-2  # the same in float16 and bfloat16
NUMBERS_AT_A_TIME = 1 << 22  # that are taken to float64: 32 MB


def positive(value: object, name: str) -> int:
    """``value`` as an int; raises :class:`UserError` with the argument's name unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UserError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def check_query_and_gallery(
    query: Tensor, gallery: Tensor, why: str, dtype: torch.dtype | None = None
) -> None:
    """Raise :class:`~snnet.errors.UserError` unless both are [images, d] of one d, with rows of norm 1 or 0.

    They must be of ``dtype``; None: any one of real numbers.
    """
    for name, features in (("query", query), ("gallery", gallery)):
        fits = features.is_floating_point() if dtype is None else features.dtype == dtype
        if features.dim() != 2 or features.shape[1] == 0 or not fits:
            wanted = "real numbers" if dtype is None else str(dtype).removeprefix("torch.")
            raise UserError(
                f"{name} must be {wanted} [images, d], got {features.dtype} {list(features.shape)}"
            )
        check_unit_rows(name, features, why)
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query and gallery must have the same number of features, got {query.shape[1]} and {gallery.shape[1]}"
        )


def check_unit_rows(name: str, features: Tensor, why: str) -> None:
    """Raise :class:`~snnet.errors.UserError` unless each row of ``features`` [n, d] has norm 1 or 0."""
    slack = HALF_UNIT_SLACK if features.dtype in (torch.float16, torch.bfloat16) else UNIT_SLACK
    blocks = features.split(max(1, NUMBERS_AT_A_TIME // max(1, features.shape[1])))
    norms = torch.cat([torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in blocks])
    wrong = ~(((norms - 1).abs() <= slack) | (norms == 0))  # NaN is wrong, too
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UserError(f"{name} must have rows of norm 1, row {row} has {float(norms[row]):.4g}: {why}")
