"""The gates: an answer is compared with the reference's before anything is timed.

Counts and bits must be equal. Where an answer was decided on other products than the reference's (no S, other shapes
of product), a label or neighbour may differ if float64 says that rounding decides it: a difference of at most MARGIN
between the two sides of a comparison.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from .case import MIN_RANK, ROWS_AT_ONCE, THRESHOLD, Batch, Case

MARGIN = 2e-6
ROUNDING = 4e-6  # of similarities in float32, absolute


def require(holds: Any, message: str) -> None:
    """Raise AssertionError unless it holds, under ``python -O`` too."""
    if not holds:
        raise AssertionError(message)


def as_bool(labels: Any, n: int) -> Tensor:
    """bool [B, n] of labels in any of the forms in which contenders return them."""
    if not isinstance(labels, Tensor):  # a scipy sparse matrix, of columns as they lie
        rows = labels if labels.shape[1] == n else labels.T
        return torch.from_numpy(rows.toarray()).bool()
    if labels.dtype == torch.uint8 and labels.shape[1] != n:
        return sk.unpack_labels(labels, n)
    return labels.bool()


def close(
    what: str, got: Tensor, expected: Tensor, *, absolute: float = ROUNDING, relative: float = 0.0
) -> None:
    """Within ``absolute`` plus ``relative`` times the largest expected entry, everywhere; of the same shape."""
    largest = float(expected.abs().max()) if relative and expected.numel() else 0.0
    allowed = absolute + relative * largest
    torch.testing.assert_close(got, expected, atol=allowed, rtol=0, msg=lambda text: f"{what}: {text}")


def close_losses(answer: Any, expected: Any, relative: float = 1e-5) -> None:
    """Loss and gradient within ``relative`` times the largest entry."""
    for name, got, wanted in zip(("loss", "gradient"), answer, expected, strict=True):
        close(name, got, wanted, absolute=0, relative=relative)


def same(what: str, got: Tensor, expected: Tensor) -> None:
    """Equal to the bit."""
    close(what, got, expected, absolute=0)


def same_labels(case: Case, batch: Batch, got: Any) -> None:
    """Labels of a batch, as bool or bits, are the reference's."""
    same_predictions(case.memory, batch.index, got, batch.expected_labels)


def same_predictions(memory: Tensor, index: Tensor, got: Any, expected: Tensor) -> None:
    """Labels of ``index`` as bool or bits equal the packed ``expected``, but for rows that rounding decides."""
    n = memory.shape[0]
    got, expected = as_bool(got, n), sk.unpack_labels(expected, n)
    require(got.shape == expected.shape, f"labels: shape {list(got.shape)}, not {list(expected.shape)}")
    for row in (got != expected).any(1).nonzero().flatten().tolist():
        image = int(index[row])
        explained = rounding_decides(memory, image)
        require(explained, f"labels of image {image}: no rounding explains the difference")


def few_flipped_rows(case: Case, batch: Batch, got: Any) -> None:
    """For products of less than float32 precision: at most 5 % of the rows of labels differ."""
    expected = sk.unpack_labels(batch.expected_labels, case.shape.n)
    count = int((as_bool(got, case.shape.n) != expected).any(1).sum())
    require(count <= 0.05 * max(1, batch.size), f"labels: {count} of {batch.size} rows differ")


def same_neighbors(case: Case, batch: Batch, got: Any, k: int) -> None:
    """(indices [B, k], similarity [B, k]) are the k nearest others; equal similarities in any order."""
    index, similarity = (torch.as_tensor(part, device=case.device).reshape(-1, k) for part in got)
    index = index.long()
    expected = reference.nearest_neighbors(case.memory, batch.index, k)[1]
    close("similarity of the neighbours", similarity, expected)
    require(not (index == batch.index[:, None]).any(), "neighbours: an image is its own neighbour")
    require(index.sort(1).values.diff(dim=1).all(), "neighbours: an image comes twice")
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


def same_update(case: Case, batch: Batch, memory: Tensor, kept: Any = None) -> None:
    """``memory`` [n, d] is what the update of ``batch`` makes of the case's, and ``kept`` beside it follows:
    S [n, n] or neighbour lists, compared with a product of the updated memory in float64."""
    index = batch.index
    expected = case.memory.clone()
    reference.update_memory_(expected, index, batch.features, case.momentum)
    close("memory", memory, expected)
    if kept is None:
        return
    exact = (expected[index].double() @ expected.double().t()).float()
    if isinstance(kept, sk.NeighborLists):
        same_lists(kept, index, exact)
        return
    close("rows of S", kept[index], exact)
    close("columns of S", kept[:, index].t(), exact)
    outside = torch.ones(len(kept), dtype=torch.bool, device=index.device).index_fill_(0, index, False)
    for rows in outside.nonzero().flatten().split(ROWS_AT_ONCE):
        got, before = (matrix[rows].index_fill_(1, index, 0.0) for matrix in (kept, case.matrix))
        same("S outside of the batch", got, before)


def same_lists(lists: sk.NeighborLists, index: Tensor, exact: Tensor) -> None:
    """Compare lists with the similarities ``exact`` [B, n] of ``index``.

    The rows of ``index`` list their columns, all other rows list the images of ``index``.
    """
    entry = index.new_full((len(lists.counts),), -1)  # the place in the batch
    entry[index] = torch.arange(len(index), device=index.device)
    filled = torch.arange(lists.capacity, device=index.device) < lists.counts[:, None]

    def compare(whose: str, row: Tensor, column: Tensor, values: Tensor, floors: Tensor) -> None:
        close(f"similarities in {whose}", values, exact[row, column])
        missing = exact.clone()
        missing[row, column] = -torch.inf
        over = missing > floors + ROUNDING
        require(not over.any(), f"{whose}: {int(over.sum())} similarities above their floor are missing")

    row, place = filled[index].nonzero().unbind(1)
    own, column = index[row], lists.columns[index][row, place].long()
    values = lists.values[own, place]
    floors = lists.floors[index][:, None]
    if lists.mirrors is not None:
        floors = floors.minimum(lists.floors)
    compare("the lists", row, column, values, floors)
    if lists.mirrors is not None and lists.mirrors.numel():  # the kernels of a GPU need none
        mirror = lists.mirrors[own, place].long()
        same("columns of the mirrors", lists.columns[column, mirror].long(), own)
        same("similarities of the mirrors", lists.values[column, mirror], values)
    image, place = (filled & (entry[lists.columns.clamp_min(0)] >= 0)).nonzero().unbind(1)
    row = entry[lists.columns[image, place].long()]
    compare("the lists of others", row, image, lists.values[image, place], lists.floors)
