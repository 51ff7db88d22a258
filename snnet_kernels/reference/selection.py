"""Selecting the largest entries of a row in one defined order: falling value, ties by lower column, NaN first."""

from __future__ import annotations

from torch import Tensor


def ordered_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of ``values`` [B, n] as (values [B, k], columns int64 [B, k]).

    Equals ``values.sort(dim=1, descending=True, stable=True)`` cut to k, without sorting n entries:
    ``topk`` leaves open which of several equal entries it takes and in which order it returns them, so
    a row whose k-th value also stands outside its selection gets its ties taken again, lowest column first.
    """
    top, columns = values.topk(k, dim=1)
    if k == 0 or values.shape[0] == 0:
        return top, columns
    last = top[:, -1:]
    tied = ((values == last).sum(1) > (top == last).sum(1)).nonzero().flatten()
    if tied.numel():
        rows, bar = values[tied], last[tied]
        above, equal = (rows > bar) | rows.isnan(), rows == bar
        room = k - above.sum(1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(1) <= room))
        columns[tied] = chosen.nonzero()[:, 1].view(-1, k)
    nan = last.isnan().nonzero()[:, 0]  # equal to nothing, not even to each other
    if nan.numel():
        columns[nan] = values[nan].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    top, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return top, columns.gather(1, order)
