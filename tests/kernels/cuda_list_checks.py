"""Neighbour lists as the CUDA kernels keep them, and the update of those by the emulation."""

import torch

from snnet_kernels.neighbor_list_layout import NeighborLists
from tests.kernels.list_checks import dense

KINDS = ("clustered", "exact", "same", "zero rows", "duplicates")


def without_mirrors(lists: NeighborLists) -> NeighborLists:
    """A copy of the tables as a GPU keeps them."""
    tables = [part.clone() for part in lists[:4]]
    return NeighborLists(*tables, torch.empty(len(lists.counts), 0, dtype=torch.int32))


def update_(build, memory, index, features, alpha, lists):
    build.operations.update_memory_lists_(
        memory, index, features, torch.tensor(alpha), *lists, features @ memory.t()
    )


def same_lists(ours: NeighborLists, theirs: NeighborLists, tolerance: float = 2e-6) -> None:
    """The same pairs, but for those whose similarity is a floor's but for rounding."""
    one, two = dense(ours), dense(theirs)
    assert (ours.floors - theirs.floors).nan_to_num().abs().max() <= tolerance
    assert (one - two).nan_to_num().abs().max() <= tolerance
    value = torch.where(one.isnan(), two, one)
    gap = (value - theirs.floors[:, None]).abs()
    differ = (one.isnan() != two.isnan()) & (torch.minimum(gap, gap.t()) > tolerance)
    assert int(differ.sum()) == 0


def outcome(check) -> bool:
    """Whether a check passes; the emulation reports what a GPU leaves undefined as an error."""
    try:
        check()
    except (AssertionError, RuntimeError):
        return False
    return True
