"""Every operation of the package: its schema and, for tracing, the shape and type of its result.

n images, d feature dimensions, B batch entries, L = label_bytes(n). Similarities, memory and cache are
float32, indices int64, label bits uint8. An implementation is registered elsewhere: the plain PyTorch one
for every device in :mod:`.defaults`, compiled ones by the libraries that :mod:`.backends` loads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference.cache_blocks import block_bytes
from .reference.labels import label_bytes

LIBRARY = torch.library.Library("snnet", "DEF")
OPERATIONS: list[str] = []  # their names, in the order of this file


def define_operation(schema: str) -> Callable[[Callable], Callable]:
    """Define ``snnet::schema``; the decorated function computes an empty result for tracing."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.split("(", 1)[0]
    OPERATIONS.append(name)

    def register(fake: Callable) -> Callable:
        torch.library.register_fake(f"snnet::{name}", fake, lib=LIBRARY)
        return fake

    return register


# labels: bool [B, n] -> uint8 [B, L]
@define_operation("pack_labels(Tensor labels) -> Tensor")
def _pack_labels(labels: Tensor) -> Tensor:
    return labels.new_empty(labels.shape[0], label_bytes(labels.shape[1]), dtype=torch.uint8)


# labels: uint8 [B, L] -> bool [B, n]
@define_operation("unpack_labels(Tensor labels, SymInt n) -> Tensor")
def _unpack_labels(labels: Tensor, n: int) -> Tensor:
    return labels.new_empty(labels.shape[0], n, dtype=torch.bool)


# row_bits, column_bits: uint8 [n, L], P and its transpose; index [B], labels uint8 [B, L]
@define_operation(
    "write_labels_(Tensor(a!) row_bits, Tensor(b!) column_bits, Tensor index, Tensor labels) -> ()"
)
def _write_labels(row_bits: Tensor, column_bits: Tensor, index: Tensor, labels: Tensor) -> None:
    return None


# bits uint8 [n, L], index [B] -> uint8 [B, L]; index -1 gives an empty label
@define_operation("gather_labels(Tensor bits, Tensor index) -> Tensor")
def _gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    return bits.new_empty(index.shape[0], bits.shape[1])


# features [B, d], memory [n, d] -> s [B, n]
@define_operation("memory_similarity(Tensor features, Tensor memory) -> Tensor")
def _memory_similarity(features: Tensor, memory: Tensor) -> Tensor:
    return features.new_empty(features.shape[0], memory.shape[0])


# grad [B, n], memory [n, d] -> [B, d]
@define_operation("memory_similarity_backward(Tensor grad, Tensor memory) -> Tensor")
def _memory_similarity_backward(grad: Tensor, memory: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], memory.shape[1])


# memory [n, d] -> S [n, n]
@define_operation("build_similarity_cache(Tensor memory) -> Tensor")
def _build_similarity_cache(memory: Tensor) -> Tensor:
    return memory.new_empty(memory.shape[0], memory.shape[0])


# cache [n, n] -> uint8 [n, block_bytes(n)]
@define_operation("mark_cache_blocks(Tensor cache, float floor) -> Tensor")
def _mark_cache_blocks(cache: Tensor, floor: float) -> Tensor:
    return cache.new_empty(cache.shape[0], block_bytes(cache.shape[0]), dtype=torch.uint8)


# memory [n, d], index [B], cache [n, n], query_rows [B, n], block_bits uint8 [n, block_bytes(n)] -> uint8 [B, L]
@define_operation(
    "mplp(Tensor memory, Tensor index, Tensor? cache, Tensor? query_rows, float threshold, "
    "int min_rank, bool strict, Tensor? block_bits=None, float block_floor=0.) -> Tensor"
)
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
    return memory.new_empty(index.shape[0], label_bytes(memory.shape[0]), dtype=torch.uint8)


# the same -> index int64 [B, k], similarity [B, k]
@define_operation(
    "nearest_neighbors(Tensor memory, Tensor index, Tensor? cache, Tensor? query_rows, int k) "
    "-> (Tensor, Tensor)"
)
def _nearest_neighbors(
    memory: Tensor, index: Tensor, cache: Tensor | None, query_rows: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    return index.new_empty(index.shape[0], k), memory.new_empty(index.shape[0], k)


# row_bits, column_bits uint8 [n, L] are P and its transpose, the rest as for mplp
# -> main, symmetric and neighbor labels, uint8 [B, L] each
@define_operation(
    "mine_labels_(Tensor memory, Tensor index, Tensor? cache, Tensor? query_rows, Tensor(a!) row_bits, "
    "Tensor(b!) column_bits, float threshold, int min_rank, bool strict, Tensor? block_bits=None, "
    "float block_floor=0.) -> (Tensor, Tensor, Tensor)"
)
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
    shape = index.shape[0], row_bits.shape[1]
    return row_bits.new_empty(shape), row_bits.new_empty(shape), row_bits.new_empty(shape)


# similarity [B, n], labels uint8 [B, L] each -> loss [], ∂L/∂s [B, n]
@define_operation(
    "mutual_label_loss(Tensor similarity, Tensor[] labels, float[] weights, str kind, float delta, "
    "float hard_negative_ratio) -> (Tensor, Tensor)"
)
def _mutual_label_loss(
    similarity: Tensor,
    labels: list[Tensor],
    weights: list[float],
    kind: str,
    delta: float,
    hard_negative_ratio: float,
) -> tuple[Tensor, Tensor]:
    return similarity.new_empty(()), torch.empty_like(similarity)


# features [B, d], memory [n, d], similarity [B, n] -> loss [], ∂L/∂f [B, d]
@define_operation(
    "fused_mutual_label_loss(Tensor features, Tensor memory, Tensor? similarity, Tensor[] labels, "
    "float[] weights, str kind, float delta, float hard_negative_ratio) -> (Tensor, Tensor)"
)
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
    return features.new_empty(()), features.new_empty(features.shape)


# memory [n, d], index [B], features [B, d], momentum [], cache [n, n], similarity [B, n], block_bits as for mplp
@define_operation(
    "update_memory_(Tensor(a!) memory, Tensor index, Tensor features, Tensor momentum, Tensor(b!)? cache, "
    "Tensor? similarity, Tensor(c!)? block_bits=None, float block_floor=0.) -> ()"
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
    return None
