"""The momentum update of the exemplar memory and of its neighbour lists."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .. import checks, reference
from ..checks import check_index_values, check_momentum_value
from ..neighbor_list_layout import NeighborLists
from .operation import operation

SIMILARITIES_AT_ONCE = 2**26  # entries of s that are computed at once if s is not given
PART_ROWS = 64  # of a part on a GPU, or a multiple: products are made in tiles


def parts_of_batch(batch_size: int, n: int, multiple: int = 1) -> Iterator[slice]:
    """Parts of a batch, of which s [rows, n] is computed at once; of a multiple of rows if one is not too large."""
    step = max(1, SIMILARITIES_AT_ONCE // max(n, 1))
    if step > multiple:
        step -= step % multiple
    return (slice(start, start + step) for start in range(0, batch_size, step))


@operation(lambda *_: None, writes=("memory",))
def _update_memory_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor) -> None:
    check_index_values("index", index, memory.shape[0])
    check_momentum_value(momentum)
    index, features, momentum = checks.apart([memory], index, features, momentum)
    reference.update_memory_(memory, index, features, momentum)


@operation(lambda *_: None, writes=("memory", "columns", "values", "counts", "floors", "mirrors"))
def update_memory_lists_(
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
    """The momentum update of the memory, and of lists of it."""
    check_index_values("index", index, memory.shape[0])
    check_momentum_value(momentum)
    lists = NeighborLists(columns, values, counts, floors, mirrors)
    index, features, momentum, similarity = checks.apart(
        [memory, columns, values, counts, floors, mirrors], index, features, momentum, similarity
    )
    reference.update_memory_lists_(memory, index, features, momentum, lists, similarity)


def update_memory_(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: float | Tensor,
    *,
    lists: NeighborLists | None = None,
    similarity: Tensor | None = None,
) -> None:
    """Momentum update of the exemplar memory, in place: ``M[index] = normalize(α M[index] + (1 − α) f)``.

    Repeated indices are applied in batch order, one after the other. A zero vector stays zero. ``lists`` are updated
    too, without a product with the whole memory. An entry whose new row would not be finite is skipped, in the memory
    and in the lists. With α = 0 the old row is ignored, even if it is not finite.

    Features should have length 1, which is not checked: a longer one would weigh more. Written rows have length 1.
    Inputs may share memory with tensors that are written; tensors that are written must not share memory with each
    other.

    Args:
        memory: float32 [n, d], contiguous, written.
        index: int64 [B].
        features: [B, d], any floating type and strides.
        momentum: α in [0, 1], a number or a 0-d tensor (a changed number recompiles a traced graph).
        lists: symmetric neighbour lists of the memory before the update, written. If an error is raised while it runs
            (lists that contradict themselves, no memory), memory and lists may be half updated: build the lists again.
        similarity: ``memory_similarity(features, memory)`` [B, n] before the update. If lists need it and it is not
            given, it is computed, for parts of the batch if it would be large.
    """
    memory = checks.check_memory("memory", memory)
    n = memory.shape[0]
    features = checks.check_features("features", features, memory.shape[1]).detach()
    index = checks.check_index("index", index, n, features.shape[0])
    momentum = checks.check_momentum(momentum, memory.device)
    if similarity is not None:
        similarity = checks.check_rows("similarity", similarity, features.shape[0], n).detach()
    checks.check_same_device(memory=memory, index=index, features=features, similarity=similarity)
    if lists is None:
        return _update_memory_(memory, index, features, momentum)
    lists = checks.check_lists("lists", lists, memory, symmetric=True)
    tables = {f"lists.{name}": table for name, table in lists._asdict().items()}
    checks.check_apart({"memory": memory, **tables})
    if similarity is not None:
        return update_memory_lists_(memory, index, features, momentum, *lists, similarity)
    parts = list(parts_of_batch(features.shape[0], n, PART_ROWS if memory.is_cuda else 1))
    if len(parts) > 1:  # a part may write what the next one reads
        index, features, momentum = index.clone(), features.clone(), momentum.clone()
    for part in parts:
        update_memory_lists_(memory, index[part], features[part], momentum, *lists, similarity)
