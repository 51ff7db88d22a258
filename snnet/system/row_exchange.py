"""Rows of a matrix that lie with several processes, brought to where they are wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch.distributed as dist
from torch import Tensor

from snnet.system.processes import Processes

CHUNK = 1 << 26  # bytes of a message


def moved_rows(rows: Tensor, have: range, want: range, processes: Processes) -> Tensor:
    """The rows ``want`` of a matrix of which this process has the rows ``have``: ``rows`` [len(have), ...].

    Every process calls it with its own ranges. All rows have one type and length; each wanted row lies with some
    process. The result [len(want), ...] lies on the CPU.
    """
    rows = rows.detach().cpu().contiguous()
    found = rows.new_empty(len(want), *rows.shape[1:])
    requests = []
    for rank, (theirs, wanted) in enumerate(processes.everywhere((have, want))):
        if rank == processes.rank:
            own = _common(have, want)
            found[_slice(own, want)] = rows[_slice(own, have)]
            continue
        for part in _chunks(_common(have, wanted), rows):
            requests.append(dist.isend(rows[_slice(part, have)], rank))
        for part in _chunks(_common(theirs, want), rows):
            requests.append(dist.irecv(found[_slice(part, want)], rank))
    for request in requests:
        if request is not None:
            request.wait()
    return found


def rows_of_all(rows: Tensor, processes: Processes) -> Tensor:
    """In rank 0 the rows of all processes, in order; none in the others. A single process gets its own as they are."""
    if not processes.are_several:
        return rows
    counts = processes.everywhere(len(rows))
    first = sum(counts[: processes.rank])
    want = range(sum(counts) if processes.is_first else 0)
    return moved_rows(rows, range(first, first + len(rows)), want, processes)


def rows_in_turn(
    rows: Tensor, shares: Sequence[range], most: int, rank: int = 0, group: dist.ProcessGroup | None = None
) -> Iterator[tuple[int, Tensor]]:
    """All rows of a matrix that is divided over the processes of ``group``: ``most`` at a time come by, in order.

    Each has its one of the ``shares``: ``rows`` [len(share), ...]. Yields the position of the first, and the rows.
    """
    for owner, share in enumerate(shares):
        for first in range(share.start, share.stop, most):
            part = range(first, min(first + most, share.stop))
            if owner == rank:
                block = rows[_slice(part, share)].contiguous()
            else:
                block = rows.new_empty(len(part), *rows.shape[1:])
            if group is not None:
                dist.broadcast(block, src=owner, group=group)
            yield first, block


def _common(one: range, two: range) -> range:
    first = max(one.start, two.start)
    return range(first, max(first, min(one.stop, two.stop)))


def _slice(part: range, whole: range) -> slice:
    """Where the rows ``part`` lie among the rows ``whole``."""
    return slice(part.start - whole.start, part.stop - whole.start) if part else slice(0, 0)


def _chunks(part: range, rows: Tensor) -> Iterator[range]:
    """``part`` in messages of a few rows each, as many in all processes: who has no ``rows`` may receive some."""
    width = rows.element_size() * math.prod(rows.shape[1:])  # bytes
    step = max(1, CHUNK // max(1, width))
    for first in range(part.start, part.stop, step):
        yield range(first, min(first + step, part.stop))
