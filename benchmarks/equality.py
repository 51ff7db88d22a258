"""The gates: an answer is compared with the reference's before anything is timed.

Counts and bits must be equal. Where an answer was decided on other products than the reference's (no cache, other
shapes of product), a label or neighbour may differ if float64 says that rounding decides it: a difference of
at most MARGIN between the two sides of a comparison.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from .case import MIN_RANK, THRESHOLD, Batch, Case

MARGIN = 2e-6
ROUNDING = 4e-6  # of similarities in float32, absolute


class Unequal(AssertionError):
    """An answer that is not the reference's."""


def as_bool(labels: Any, n: int) -> Tensor:
    """bool [B, n] of labels in any of the forms in which contenders return them."""
    if not isinstance(labels, Tensor):  # a scipy sparse matrix
        return torch.from_numpy(labels.toarray()).bool()
    if labels.dtype == torch.uint8 and labels.shape[1] != n:
        return sk.unpack_labels(labels, n)
    return labels.bool()


def same(what: str, got: Tensor, expected: Tensor) -> None:
    """Equal to the bit."""
    if got.shape != expected.shape:
        raise Unequal(f"{what}: shape {list(got.shape)} in place of {list(expected.shape)}")
    if not torch.equal(got, expected):
        raise Unequal(f"{what}: {int((got != expected).sum())} of {got.numel()} entries differ")


def close(
    what: str, got: Tensor, expected: Tensor, *, absolute: float = ROUNDING, relative: float = 0.0
) -> None:
    """Within ``absolute`` plus ``relative`` times the largest expected entry, everywhere."""
    if got.shape != expected.shape:
        raise Unequal(f"{what}: shape {list(got.shape)} in place of {list(expected.shape)}")
    if expected.numel() == 0:
        return
    allowed = absolute + relative * float(expected.abs().max())
    worst = float((got - expected).abs().max())
    if not worst <= allowed:  # NaN is not
        raise Unequal(f"{what}: off by {worst:.3g}, allowed is {allowed:.3g}")


def same_labels(case: Case, batch: Batch, got: Any, expected: Tensor) -> None:
    """Labels of ``batch`` as bool or bits equal the packed ``expected``, but for rows that rounding decides."""
    n = case.shape.n
    got, expected = as_bool(got, n), sk.unpack_labels(expected, n)
    if got.shape != expected.shape:
        raise Unequal(f"labels: shape {list(got.shape)} in place of {list(expected.shape)}")
    for row in (got != expected).any(1).nonzero().flatten().tolist():
        if not rounding_decides(case.memory, int(batch.index[row])):
            raise Unequal(f"labels of image {int(batch.index[row])}: no rounding explains the difference")


def flipped_rows(case: Case, got: Any, expected: Tensor, most: float = 0.05) -> int:
    """Rows of labels that differ, for products of less than float32 precision; more than ``most`` of them raise."""
    n = case.shape.n
    count = int((as_bool(got, n) != sk.unpack_labels(expected, n)).any(1).sum())
    if count > most * max(1, expected.shape[0]):
        raise Unequal(f"labels: {count} of {expected.shape[0]} rows differ")
    return count


def same_neighbors(case: Case, batch: Batch, got: Any, k: int) -> None:
    """(indices [B, k], similarity [B, k]) are the k nearest others; equal similarities in any order."""
    index, similarity = (torch.as_tensor(part, device=case.device) for part in got)
    expected = reference.nearest_neighbors(case.memory, batch.index, k)[1]
    close("similarity of the neighbours", similarity.reshape(-1, k), expected)
    index = index.reshape(-1, k).long()
    if (index == batch.index[:, None]).any() or (index.sort(1).values.diff(dim=1) == 0).any():
        raise Unequal("neighbours: an image is its own neighbour, or comes twice")
    rows = case.memory[batch.index].double()
    named = torch.einsum("bd,bkd->bk", rows, case.memory[index].double())
    close("similarity of the images named as neighbours", named.float(), expected)


def rounding_decides(memory: Tensor, image: int) -> bool:
    """Whether some comparison in the label prediction of ``image`` has sides within MARGIN in float64."""
    exact = memory.double()
    row = torch.mv(exact, exact[image])
    values, order = row.sort(descending=True)
    candidates = int((row > THRESHOLD).sum())
    around = values[: candidates + 1]
    if (row - THRESHOLD).abs().min() <= MARGIN or (around[:-1] - around[1:] <= MARGIN).any():
        return True
    anchor, rank = order[0], max(candidates, MIN_RANK)
    ranked = exact[order[:candidates]] @ exact.t()
    bars = ranked[:, anchor, None].clone()
    ranked[:, anchor] = -torch.inf
    surely, perhaps = ((ranked > bars + slack).sum(1) for slack in (MARGIN, -MARGIN))
    return bool(((surely <= rank) & (perhaps > rank)).any())


def same_update(case: Case, batch: Batch, memory: Tensor, cache: Tensor | None = None) -> None:
    """``memory`` [n, d], and ``cache`` [n, n] where given, are what the update of ``batch`` makes of the case's.

    The rows of the cache are compared with a product of the updated memory in float64. Puts the case back.
    """
    index = batch.index
    got = memory.clone()
    got_rows, got_columns = (
        (None, None) if cache is None else (cache[index], cache[:, index].t().contiguous())
    )
    case.restore_()
    expected = case.memory.clone()
    reference.update_memory_(expected, index, batch.features, case.momentum)
    close("memory", got, expected)
    if cache is not None:
        exact = (expected[index].double() @ expected.double().t()).float()
        close("rows of the cache", got_rows, exact)
        close("columns of the cache", got_columns, exact)
