"""What holds of neighbour lists, whoever made or updated them."""

import torch

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.neighbor_list_layout import NeighborLists, are_symmetric

KINDS = ("clustered", "exact", "same", "zero rows", "duplicates")


def symmetric_lists(memory: torch.Tensor, capacity: int, floor: float | None = None) -> NeighborLists:
    """Lists as a memory keeps them."""
    return sk.neighbor_lists(memory, capacity, floor=floor, symmetric=True)


def dense(lists: NeighborLists) -> torch.Tensor:
    """The listed values [n, n], NaN where nothing is listed."""
    row, place = (lists.columns >= 0).nonzero().unbind(1)
    made = torch.full((len(lists.counts),) * 2, torch.nan, device=lists.values.device)
    made[row, lists.columns[row, place].long()] = lists.values[row, place]
    return made


def check_lists(lists: NeighborLists, similarity: torch.Tensor, tolerance: float | torch.Tensor) -> None:
    """Everything above the floors is listed with its value; places, counts and mirrors agree.

    ``tolerance`` is one for all similarities [n, n], or each has its own.
    """
    listed = dense(lists)
    missing = listed.isnan() & (similarity > lists.floors[:, None] + tolerance)
    assert int(missing.sum()) == 0
    assert ((listed - similarity).nan_to_num().abs() <= tolerance).all()
    places = torch.arange(lists.capacity, device=listed.device) < lists.counts[:, None]
    assert torch.equal(places, lists.columns >= 0)
    assert torch.equal(places, lists.values > -torch.inf)
    if lists.mirrors is not None:
        assert torch.equal(listed.nan_to_num(9.0), listed.t().nan_to_num(9.0))
        assert are_symmetric(lists)


def without_mirrors(lists: NeighborLists) -> NeighborLists:
    """A copy of the tables as a GPU keeps them."""
    tables = [part.clone() for part in lists[:4]]
    return NeighborLists(*tables, torch.empty(len(lists.counts), 0, dtype=torch.int32))


def tables_of(build, lists: NeighborLists) -> NeighborLists:
    """A copy of the tables as the kernels of ``build`` keep them."""
    of_cpu = build.operations is torch.ops.snnet
    return NeighborLists(*(table.clone() for table in lists)) if of_cpu else without_mirrors(lists)


def update_(build, memory, index, features, alpha, lists):
    """The update of memory and lists by the kernels of ``build``."""
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


def check_labels(build, memory, index, lists, threshold, min_rank, rows=None, seed=0, blocks_at_once=1):
    """Labels from lists are those of the whole matrix; returns how many rows were multiplied."""
    expected = reference.mplp(memory, index, threshold, min_rank, cache=memory @ memory.t(), query_rows=rows)
    plain, plain_made = reference.mplp_from_lists(memory, index, lists, threshold, min_rank, query_rows=rows)
    build.seed(seed, blocks_at_once)
    labels, made = build.operations.mplp_from_lists(memory, index, *lists[:4], rows, threshold, min_rank)
    build.seed(seed)
    assert torch.equal(labels, expected)
    assert torch.equal(plain, expected)
    assert (int(made) == 0) == (plain_made == 0)
    return int(made)


def check_neighbors(build, memory, index, lists, k, seed=0, blocks_at_once=1):
    wanted, values = reference.nearest_neighbors(memory, index, k, cache=memory @ memory.t())
    plain_made = reference.nearest_from_lists(memory, index, lists, k)[2]
    build.seed(seed, blocks_at_once)
    neighbors, similarity, made = build.operations.nearest_from_lists(memory, index, *lists[:4], k)
    build.seed(seed)
    assert torch.equal(neighbors, wanted)
    assert (similarity - values).nan_to_num().abs().max() < 1e-6
    assert int(made) == plain_made
