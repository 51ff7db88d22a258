"""The operations for CUDA tensors: who serves each call.

What reads the similarity cache, or similarities at hand, goes to the compiled library; what has to make its products
as it goes, to Triton. Where one of the two is missing the other serves if it can, else plain PyTorch does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backends, defaults, reference
from . import gpu_schemas as compiled_schemas
from .precision import get_matmul_precision
from .reference.precision import exact_float32, tf32_product
from .schemas import LIBRARY

_compiled = torch.ops.snnet_cuda
# Bytes of similarities [B, n] up to which a loss from features makes them all: about what the L2 cache holds. That is
# one product of torch's and a sparse one, or two of torch's, where Triton makes three or two. Counted, not measured.
HELD_SIMILARITIES = 64 * 2**20
# Share of hard negatives up to which the sparse backward product is cheaper than a dense one of that precision: the
# first is bound by reading rows of the memory, the second by arithmetic. Counted from both, not measured.
_SPARSE_UP_TO = {"ieee": 0.05, "bf16": 0.05, "tf32x3": 0.05, "tf32": 0.01}


def available_backends(dispatch_key: str = "CUDA") -> tuple[str, ...]:
    """The backends that serve tensors of ``dispatch_key`` beside plain PyTorch."""
    found = []
    if all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"snnet_cuda::{name}", dispatch_key)
        for name in compiled_schemas.OPERATIONS
    ):
        found.append("cuda")
    if importlib.util.find_spec("triton") is not None:
        found.append("triton")
    return tuple(found)


def _choose(operation: str, *preferred: str) -> str:
    """The first of the ``preferred`` backends that is there, else the reference; or the forced one, or an error."""
    for name in preferred:
        if name in _available and backends.FORCED in (None, name):
            return name
    if backends.FORCED is not None:
        raise NotImplementedError(
            f"SNNET_BACKEND={backends.FORCED} does not serve this call of {operation} (of the backends that could, "
            f"{', '.join(preferred)}, there are: {', '.join(_available) or 'none'})"
        )
    return "reference"


def similarity_of(features: Tensor, memory: Tensor) -> Tensor:
    """``features memoryᵀ`` [B, n] in the chosen precision."""
    if get_matmul_precision() == "tf32x3" and "triton" in _available:
        from .triton.similarity import memory_similarity

        return memory_similarity(features, memory)
    return _product(features, memory.t())


def gradient_of(grad: Tensor, memory: Tensor) -> Tensor:
    """``grad memory`` [B, d] in the chosen precision, ieee in place of tf32x3.

    The kernel for that reads both operands along their rows, for which the memory would have to be copied, and one of
    its programs sums over all images.
    """
    return _product(grad, memory)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with exact_float32(a.device):
        return tf32_product(a, b) if get_matmul_precision() == "tf32" else a @ b


def _build_similarity_cache(memory: Tensor) -> Tensor:
    return similarity_of(memory, memory)


def _pack_labels(labels: Tensor) -> Tensor:
    if _choose("pack_labels", "cuda") == "cuda":
        return _compiled.pack_labels.default(labels)
    return reference.pack_labels(labels)


def _unpack_labels(labels: Tensor, n: int) -> Tensor:
    if _choose("unpack_labels", "cuda") == "cuda":
        return _compiled.unpack_labels.default(labels, n)
    return reference.unpack_labels(labels, n)


def _gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    if _choose("gather_labels", "cuda") == "cuda":
        return _compiled.gather_labels.default(bits, index)
    return reference.gather_labels(bits, index)


def _write_labels(row_bits: Tensor, column_bits: Tensor, index: Tensor, labels: Tensor) -> None:
    if _choose("write_labels_", "cuda") == "cuda":
        _compiled.write_labels_.default(row_bits, column_bits, index, labels)
    else:
        reference.write_labels_(row_bits, column_bits, index, labels)


def _mark_cache_blocks(cache: Tensor, floor: float) -> Tensor:
    if _choose("mark_cache_blocks", "cuda") == "cuda":
        return _compiled.mark_cache_blocks.default(cache, floor)
    return reference.block_bits(cache, floor)


def _mplp(
    memory: Tensor,
    index: Tensor,
    cache: Tensor | None,
    query_rows: Tensor | None,
    threshold: float,
    min_rank: int,
    strict: bool,
    block_bits: Tensor | None = None,
    block_floor: float = 0.0,
) -> Tensor:
    preferred = ("triton",) if cache is None else ("cuda", "triton")
    match _choose("mplp", *preferred):
        case "cuda":
            return _compiled.mplp.default(
                index, cache, query_rows, threshold, min_rank, strict, block_bits, block_floor
            )
        case "triton":
            from .triton.label_prediction import mplp

            return mplp(memory, index, query_rows, threshold, min_rank, strict, get_matmul_precision())
    return reference.mplp(
        memory, index, threshold, min_rank, cache=cache, query_rows=query_rows, strict=strict
    )


def _nearest_neighbors(
    memory: Tensor, index: Tensor, cache: Tensor | None, query_rows: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    at_hand = cache is not None or query_rows is not None
    preferred = ("cuda", "triton") if at_hand else ("triton", "cuda")
    match _choose("nearest_neighbors", *preferred):
        case "cuda":
            rows = query_rows if at_hand else similarity_of(memory[index], memory)
            return _compiled.nearest_neighbors.default(index, cache, rows, k)
        case "triton":
            from .triton.neighbors import nearest_neighbors

            return nearest_neighbors(memory, index, k, query_rows, get_matmul_precision())
    return reference.nearest_neighbors(memory, index, k, cache=cache, query_rows=query_rows)


def _mine_labels(
    memory: Tensor,
    index: Tensor,
    cache: Tensor | None,
    query_rows: Tensor | None,
    row_bits: Tensor,
    column_bits: Tensor,
    threshold: float,
    min_rank: int,
    strict: bool,
    block_bits: Tensor | None = None,
    block_floor: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    inquiry = (index, cache, query_rows, row_bits, column_bits)
    options = (threshold, min_rank, strict, block_bits, block_floor)
    if cache is not None and "cuda" in _available and backends.FORCED in (None, "cuda"):
        return _compiled.mine_labels_.default(*inquiry, *options)
    return defaults.mine_labels_(memory, *inquiry, *options)


def _mutual_label_loss(
    similarity: Tensor,
    labels: list[Tensor],
    weights: list[float],
    kind: str,
    delta: float,
    hard_negative_ratio: float,
) -> tuple[Tensor, Tensor]:
    arguments = (similarity, labels, weights, kind, delta, hard_negative_ratio)
    if _choose("mutual_label_loss", "cuda") == "cuda":
        return _compiled.mutual_label_loss.default(*arguments)
    return reference.mutual_label_loss_with_grad(*arguments)


def _fused_mutual_label_loss(
    features: Tensor,
    memory: Tensor,
    similarity: Tensor | None,
    labels: list[Tensor],
    weights: list[float],
    kind: str,
    delta: float,
    hard_negative_ratio: float,
) -> tuple[Tensor, Tensor]:
    few = 4 * len(features) * len(memory) <= HELD_SIMILARITIES
    preferred = ("cuda", "triton") if similarity is not None or few else ("triton", "cuda")
    features = features.contiguous()
    options = (labels, weights, delta, hard_negative_ratio)
    match _choose("fused_mutual_label_loss", *preferred):
        case "cuda":
            s = similarity_of(features, memory) if similarity is None else similarity
            if kind == "mmcl" and hard_negative_ratio <= _SPARSE_UP_TO[get_matmul_precision()]:
                return _compiled.sparse_label_loss.default(s, memory, *options)
            loss, grad = _compiled.mutual_label_loss.default(
                s, labels, weights, kind, delta, hard_negative_ratio
            )
            return loss, gradient_of(grad, memory)
        case "triton" if kind == "mmcl":
            from .triton.hard_negative_loss import hard_negative_loss

            return hard_negative_loss(features, memory, *options, get_matmul_precision())
        case "triton":
            from .triton.square_loss import square_loss

            return square_loss(features, memory, labels, weights, get_matmul_precision())
    return reference.fused_mutual_label_loss_with_grad(
        features, memory, similarity, labels, weights, kind, delta, hard_negative_ratio
    )


def _update_memory(
    memory: Tensor,
    index: Tensor,
    features: Tensor,
    momentum: Tensor,
    cache: Tensor | None,
    similarity: Tensor | None,
    block_bits: Tensor | None = None,
    block_floor: float = 0.0,
) -> None:
    if cache is None:
        similarity = None
    elif similarity is None:
        similarity = similarity_of(features, memory)
    if _choose("update_memory_", "cuda") == "cuda":
        _compiled.update_memory_.default(
            memory, index, features, momentum, cache, similarity, block_bits, block_floor
        )
    else:
        blocks = None if block_bits is None else reference.CacheBlocks(block_bits, block_floor)
        reference.update_memory_(
            memory, index, features, momentum, cache=cache, similarity=similarity, blocks=blocks
        )


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "pack_labels": _pack_labels,
    "unpack_labels": _unpack_labels,
    "write_labels_": _write_labels,
    "gather_labels": _gather_labels,
    "memory_similarity": similarity_of,
    "memory_similarity_backward": gradient_of,
    "build_similarity_cache": _build_similarity_cache,
    "mark_cache_blocks": _mark_cache_blocks,
    "mplp": _mplp,
    "nearest_neighbors": _nearest_neighbors,
    "mine_labels_": _mine_labels,
    "mutual_label_loss": _mutual_label_loss,
    "fused_mutual_label_loss": _fused_mutual_label_loss,
    "update_memory_": _update_memory,
}
# Who can serve: first over a cache, with similarities at hand or few of them to make, then the rest.
_SERVERS = {
    **dict.fromkeys(
        ("mplp", "nearest_neighbors", "mine_labels_", "fused_mutual_label_loss"), ("cuda", "triton")
    ),
    **dict.fromkeys(backends.PLAIN_PRODUCTS, ()),
}
_available: tuple[str, ...] = ()


def register(dispatch_key: str = "CUDA") -> None:
    """Serve the operations on tensors of ``dispatch_key`` with what is there; plain PyTorch for the rest."""
    global _available
    _available = available_backends(dispatch_key)
    for name, implementation in _IMPLEMENTATIONS.items():
        LIBRARY.impl(name, implementation, dispatch_key)
        served = tuple(server for server in _SERVERS.get(name, ("cuda",)) if server in _available)
        backends.GPU_SERVERS[name] = served
