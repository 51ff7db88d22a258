"""The operations on neighbour lists: schema, shape and type of the result, plain PyTorch form, and the public face.

n images, d feature dimensions, B batch entries, K places a row, L = label_bytes(n). The tensors of lists travel as
columns int32 [n, K], values float32 [n, K], counts int32 [n], floors float32 [n], mirrors int32 [n, K].
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks as checks
from . import backends, reference
from ._checks import check_index_values, check_momentum_value
from .defaults import count_writes
from .neighbor_list_layout import NeighborLists
from .reference.labels import label_bytes
from .schemas import LIBRARY, define_operation


@define_operation(
    "neighbor_lists(Tensor features, SymInt k, float floor) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _neighbor_lists(features: Tensor, k: int, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_tables(features, min(k, features.shape[0]))


@define_operation(
    "symmetric_lists(Tensor columns, Tensor values, Tensor counts, Tensor floors, SymInt capacity) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _symmetric_lists(
    columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tables = _empty_tables(values, capacity)
    return (*tables, torch.empty_like(tables[0]))


# query_rows [B, n] -> labels uint8 [B, L], rows that were multiplied int64 []
@define_operation(
    "mplp_from_lists(Tensor memory, Tensor index, Tensor columns, Tensor values, Tensor counts, Tensor floors, "
    "Tensor? query_rows, float threshold, int min_rank) -> (Tensor, Tensor)"
)
def _mplp_from_lists(
    memory: Tensor,
    index: Tensor,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    query_rows: Tensor | None,
    threshold: float,
    min_rank: int,
) -> tuple[Tensor, Tensor]:
    labels = memory.new_empty(index.shape[0], label_bytes(memory.shape[0]), dtype=torch.uint8)
    return labels, index.new_empty(())


# -> index int64 [B, k], similarity [B, k], rows that were multiplied int64 []
@define_operation(
    "nearest_from_lists(Tensor memory, Tensor index, Tensor columns, Tensor values, Tensor counts, Tensor floors, "
    "int k) -> (Tensor, Tensor, Tensor)"
)
def _nearest_from_lists(
    memory: Tensor, index: Tensor, columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    return index.new_empty(index.shape[0], k), memory.new_empty(index.shape[0], k), index.new_empty(())


# memory [n, d], index [B], features [B, d], momentum [], similarity [B, n]
@define_operation(
    "update_memory_lists_(Tensor(a!) memory, Tensor index, Tensor features, Tensor momentum, Tensor(b!) columns, "
    "Tensor(c!) values, Tensor(d!) counts, Tensor(e!) floors, Tensor(f!) mirrors, Tensor? similarity) -> ()"
)
def _update_memory_lists(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    mirrors: Tensor,
    similarity: Tensor | None,
) -> None:
    return None


def _empty_tables(like: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = like.shape[0]
    return (
        like.new_empty(n, capacity, dtype=torch.int32),
        like.new_empty(n, capacity),
        like.new_empty(n, dtype=torch.int32),
        like.new_empty(n),
    )


def _plain_neighbor_lists(features: Tensor, k: int, floor: float) -> tuple[Tensor, ...]:
    return reference.neighbor_lists(features, k, floor)[:4]


def _plain_symmetric_lists(
    columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, capacity: int
) -> tuple[Tensor, ...]:
    made = reference.symmetric_lists(NeighborLists(columns, values, counts, floors), capacity)
    return tuple(part for part in made if part is not None)


def _plain_mplp_from_lists(
    memory: Tensor,
    index: Tensor,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    query_rows: Tensor | None,
    threshold: float,
    min_rank: int,
) -> tuple[Tensor, Tensor]:
    check_index_values("index", index, memory.shape[0])
    lists = NeighborLists(columns, values, counts, floors)
    labels, products = reference.mplp_from_lists(
        memory, index, lists, threshold, min_rank, query_rows=query_rows
    )
    return labels, torch.tensor(products, device=index.device)


def _plain_nearest_from_lists(
    memory: Tensor, index: Tensor, columns: Tensor, values: Tensor, counts: Tensor, floors: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_index_values("index", index, memory.shape[0])
    lists = NeighborLists(columns, values, counts, floors)
    neighbors, similarity, products = reference.nearest_from_lists(memory, index, lists, k)
    return neighbors, similarity, torch.tensor(products, device=index.device)


def _plain_update_memory_lists(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor,
    columns: Tensor,
    values: Tensor,
    counts: Tensor,
    floors: Tensor,
    mirrors: Tensor,
    similarity: Tensor | None,
) -> None:
    check_index_values("index", index, memory.shape[0])
    check_momentum_value(momentum)
    lists = NeighborLists(columns, values, counts, floors, mirrors)
    reference.update_memory_lists_(memory, index, features, momentum, lists, similarity)


for _name, _implementation in {
    "neighbor_lists": _plain_neighbor_lists,
    "symmetric_lists": _plain_symmetric_lists,
    "mplp_from_lists": _plain_mplp_from_lists,
    "nearest_from_lists": _plain_nearest_from_lists,
    "update_memory_lists_": _plain_update_memory_lists,
}.items():
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
count_writes("update_memory_lists_", (0, 4, 5, 6, 7, 8))


def neighbor_lists(features: Tensor, k: int = 256, *, floor: float | None = None) -> NeighborLists:
    """The ``k`` largest similarities of each row of ``features``, exact, with bounded memory.

    A row lists itself too. Falling similarity, ties by lower column; NaN is above nothing. Equals
    ``(features @ features.t()).sort(dim=1, descending=True, stable=True)`` cut to k columns, in true float32, and to
    what is above ``floor``; nothing of size n × n is held.

    Args:
        features: [n, d], any floating type and strides.
        k: places a row; n of them at most are made.
        floor: list only what is above it, for a threshold graph: complete where k is at least the largest count. The
            floor of a row that has more is the largest similarity that it leaves out.

    Returns:
        NeighborLists: ``columns`` int32 [n, K], -1 behind the last entry; ``values`` float32 [n, K], -inf there;
        ``counts`` int32 [n]; ``floors`` float32 [n]: every column with a larger similarity is listed.
    """
    k = checks.check_count("k", k)
    features = checks.check_matrix("features", features, "n", "d")
    features = checks.check_features("features", features, features.shape[1]).detach()
    lowest = -float("inf") if floor is None else checks.check_finite("floor", floor)
    if backends.FORCED is not None:
        backends.require_forced_backend("neighbor_lists", features.device.type)
    return NeighborLists(*torch.ops.snnet.neighbor_lists.default(features, k, lowest))
