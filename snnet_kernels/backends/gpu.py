"""The operations for CUDA tensors, with the arguments of ``snnet::``.

What reads neighbour lists, or similarities at hand, goes to the compiled library; what has to make its products as it
goes, to Triton. Where one of the two is missing the other serves if it can, else plain PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ops.memory_update import PART_ROWS, parts_of_batch
from ..ops.operation import LIBRARY, OPERATIONS
from ..precision import exact_float32, get_matmul_precision, tf32_product
from . import cuda_library, table
from .loaded import without_code
from .usable import triton_problem

_compiled = torch.ops.snnet_cuda
# Bytes of similarities [B, n] up to which a loss from features makes them all: about what the L2 cache holds. That is
# one product of torch's and a sparse one, or two of torch's, where Triton makes three or two. More are made for parts
# of the batch if a sparse product follows. Counted, not measured.
HELD_SIMILARITIES = 64 * 2**20
# Rows and columns of a product that neighbour lists are built from at once, and rows of them that are sorted at once.
TILE, SORTED_ROWS = 4096, 65_536
# Share of hard negatives up to which the sparse backward product is cheaper than a dense one of that precision: the
# first is bound by reading rows of the memory, the second by arithmetic. Counted from both, not measured.
_SPARSE_UP_TO = {"ieee": 0.05, "bf16": 0.05, "tf32x3": 0.05, "tf32": 0.01}


def choose(operation: str, first: Tensor, at_hand: bool = True) -> str:
    """The backend of a call with this first argument: see :func:`.table.choose`."""
    return table.choose(operation, at_hand, without_code(first.get_device()))


def similarity_of(features: Tensor, memory: Tensor) -> Tensor:
    """``features memoryᵀ`` [B, n] in the chosen precision."""
    triton_serves = table.AVAILABLE["triton"] and "triton" not in without_code(features.get_device())
    if get_matmul_precision() == "tf32x3" and triton_serves:
        from ..triton.similarity import memory_similarity

        return memory_similarity(features, memory)
    return product(features, memory.t())


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the chosen precision, ieee in place of tf32x3.

    For the product of a gradient with the memory the kernel of tf32x3 would be no good: it reads both operands along
    their rows, for which the memory would have to be copied, and one of its programs would sum over all images.
    """
    with exact_float32(a.device):
        return tf32_product(a, b) if get_matmul_precision() == "tf32" else a @ b


def _compiled_or_plain(name: str) -> Callable[..., Any]:
    """An operation that the compiled library has as it is."""

    def serve(*args: Any) -> Any:
        if choose(name, args[0]) == "cuda":
            return getattr(_compiled, name).default(*args)
        return OPERATIONS[name].plain(*args)

    return serve


def _mplp(*args: Any) -> Tensor:
    if choose("mplp", args[0]) == "triton":
        from ..triton.label_prediction import mplp

        return mplp(*args)
    return OPERATIONS["mplp"].plain(*args)


def _nearest_neighbors(
    memory: Tensor, index: Tensor, query_rows: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    match choose("nearest_neighbors", memory, at_hand=query_rows is not None):
        case "cuda":
            rows = similarity_of(memory[index], memory) if query_rows is None else query_rows
            return _compiled.nearest_neighbors.default(index, rows, *options)
        case "triton":
            from ..triton.neighbors import nearest_neighbors

            return nearest_neighbors(memory, index, query_rows, *options)
    return OPERATIONS["nearest_neighbors"].plain(memory, index, query_rows, *options)


def _fused_mutual_label_loss(
    features: Tensor,
    memory: Tensor,
    similarity: Tensor | None,
    labels: list[Tensor],
    weights: list[float],
    kind: str,
    *options: float,
) -> tuple[Tensor, Tensor]:
    few = 4 * len(features) * len(memory) <= HELD_SIMILARITIES
    features = features.contiguous()
    _, hard_negative_ratio = options
    sparse = kind == "mmcl" and hard_negative_ratio <= _SPARSE_UP_TO[get_matmul_precision()]
    match choose("fused_mutual_label_loss", features, at_hand=similarity is not None or few or sparse):
        case "cuda":
            if sparse and similarity is None and not few:
                return _sparse_loss_of_parts(features, memory, labels, weights, *options)
            s = similarity_of(features, memory) if similarity is None else similarity
            if sparse:
                return _compiled.sparse_label_loss.default(s, memory, labels, weights, *options)
            loss, grad = _compiled.mutual_label_loss.default(s, labels, weights, kind, *options)
            return loss, product(grad, memory)
        case "triton":
            from ..triton.loss import fused_mutual_label_loss

            return fused_mutual_label_loss(features, memory, similarity, labels, weights, kind, *options)
    plain = OPERATIONS["fused_mutual_label_loss"].plain
    return plain(features, memory, similarity, labels, weights, kind, *options)


def _sparse_loss_of_parts(
    features: Tensor, memory: Tensor, labels: list[Tensor], weights: list[float], *options: float
) -> tuple[Tensor, Tensor]:
    """The mean of the losses of parts of the batch, and its gradient."""
    loss, grad = features.new_zeros(()), torch.empty_like(features)
    for part in parts_of_batch(len(features), len(memory), PART_ROWS):
        s, own = similarity_of(features[part], memory), [label[part] for label in labels]
        part_loss, part_grad = _compiled.sparse_label_loss.default(s, memory, own, weights, *options)
        share = len(s) / len(features)
        loss += share * part_loss
        torch.mul(part_grad, share, out=grad[part])
    return loss, grad


def _neighbor_lists(features: Tensor, k: int, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if choose("neighbor_lists", features) != "cuda":
        return OPERATIONS["neighbor_lists"].plain(features, k, floor)
    n = features.shape[0]
    columns = features.new_full((n, min(k, n)), -1, dtype=torch.int32)
    values = torch.full_like(columns, -torch.inf, dtype=torch.float32)
    counts = columns.new_zeros(n)
    # By way of float64: a floor that no float32 reaches becomes infinite.
    floors = torch.full((n,), floor, dtype=torch.float64, device=features.device).to(features.dtype)
    lowest = torch.full_like(floors, torch.inf)

    size = -(-n // max(1, -(-n // TILE)))  # of a tile: as few tiles as may be, all of nearly that many rows

    def tile(first: int) -> Tensor:
        rows = features[first : first + size]
        # All products have one shape: it may choose how cuBLAS rounds.
        return rows if len(rows) == size else pad(rows, (0, 0, 0, size - len(rows)))

    def take(products: Tensor, top: int, left: int) -> None:
        rows = lowest[top : top + size]
        rows.copy_(rows.minimum(products.amin(1)))
        _compiled.take_products_.default(products, top, left, columns, values, counts, floors)

    for top in range(0, n, max(1, size)):  # tiles of the upper triangle, each for its rows and its columns
        for left in range(top, n, size):
            with exact_float32(features.device):
                products = (tile(top) @ tile(left).t())[: n - top, : n - left].contiguous()
            if top == left:
                products = products.tril() + products.tril(-1).t()
            take(products, top, left)
            if top != left:
                take(products.t().contiguous(), left, top)
    for rows in (slice(first, first + SORTED_ROWS) for first in range(0, n, SORTED_ROWS)):
        _sort_lists_(columns[rows], values[rows])
    return columns, values, counts, floors, lowest


def _sort_lists_(columns: Tensor, values: Tensor) -> None:
    """Rows of lists by falling value, ties by lower column."""
    order = columns.argsort(dim=1)
    order = order.gather(1, values.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    columns.copy_(columns.gather(1, order))
    values.copy_(values.gather(1, order))


def _update_memory_lists_(memory: Tensor, index: Tensor, features: Tensor, *rest: Any) -> None:
    *momentum_and_lists, similarity = rest
    if similarity is None or get_matmul_precision() == "tf32":
        with exact_float32(memory.device):  # lists are exact in any precision
            similarity = features @ memory.t()
    serve = _compiled_or_plain("update_memory_lists_")
    serve(memory, index, features, *momentum_and_lists, similarity)


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "memory_similarity": similarity_of,
    "memory_similarity_backward": product,
    "mplp": _mplp,
    "nearest_neighbors": _nearest_neighbors,
    "fused_mutual_label_loss": _fused_mutual_label_loss,
    "neighbor_lists": _neighbor_lists,
    "update_memory_lists_": _update_memory_lists_,
}


def register(dispatch_key: str = "CUDA") -> None:
    """Serve the operations on tensors of ``dispatch_key`` with what is there; plain PyTorch for the rest."""
    table.AVAILABLE["cuda"] = all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"snnet_cuda::{name}", dispatch_key)
        for name in cuda_library.OPERATIONS
    )
    table.AVAILABLE["triton"] = triton_problem() is None
    for name in OPERATIONS:
        LIBRARY.impl(name, _IMPLEMENTATIONS.get(name) or _compiled_or_plain(name), dispatch_key)
