"""The plain PyTorch reference as the default implementation of every operation, and the gradients.

A compiled library adds implementations for its device beside these; where it has none, these serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import check_index_values, check_momentum_value
from .schemas import LIBRARY


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
    check_index_values("index", index, memory.shape[0])
    return reference.mplp(
        memory, index, threshold, min_rank, cache=cache, query_rows=query_rows, strict=strict
    )


def _nearest_neighbors(
    memory: Tensor, index: Tensor, cache: Tensor | None, query_rows: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    check_index_values("index", index, memory.shape[0])
    return reference.nearest_neighbors(memory, index, k, cache=cache, query_rows=query_rows)


def _write_labels(row_bits: Tensor, column_bits: Tensor, index: Tensor, labels: Tensor) -> None:
    check_index_values("index", index, row_bits.shape[0])
    reference.write_labels_(row_bits, column_bits, index, labels)


def _gather_labels(bits: Tensor, index: Tensor) -> Tensor:
    check_index_values("index", index, bits.shape[0], lowest=-1)
    return reference.gather_labels(bits, index)


def mine_labels_(
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
    """Steps 2 to 4 of an iteration from one operation each, on whichever backend serves them."""
    operations = torch.ops.snnet
    labels = operations.mplp.default(
        memory, index, cache, query_rows, threshold, min_rank, strict, block_bits, block_floor
    )
    neighbor, _ = operations.nearest_neighbors.default(memory, index, cache, query_rows, 1)
    symmetric_labels = operations.gather_labels.default(column_bits, index)
    # A single image has no neighbour (-1), and so an empty label.
    neighbor_labels = operations.gather_labels.default(row_bits, neighbor.flatten())
    operations.write_labels_.default(row_bits, column_bits, index, labels)
    return labels, symmetric_labels, neighbor_labels


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
    check_index_values("index", index, memory.shape[0])
    check_momentum_value(momentum)
    blocks = None if block_bits is None else reference.CacheBlocks(block_bits, block_floor)
    reference.update_memory_(
        memory, index, features, momentum, cache=cache, similarity=similarity, blocks=blocks
    )


_DEFAULTS = {
    "pack_labels": reference.pack_labels,
    "unpack_labels": reference.unpack_labels,
    "write_labels_": _write_labels,
    "gather_labels": _gather_labels,
    "memory_similarity": reference.memory_similarity,
    "memory_similarity_backward": reference.memory_similarity_backward,
    "build_similarity_cache": reference.build_similarity_cache,
    "mark_cache_blocks": reference.block_bits,
    "mplp": _mplp,
    "nearest_neighbors": _nearest_neighbors,
    "mine_labels_": mine_labels_,
    "mutual_label_loss": reference.mutual_label_loss_with_grad,
    "fused_mutual_label_loss": reference.fused_mutual_label_loss_with_grad,
    "update_memory_": _update_memory,
}
for _name, _implementation in _DEFAULTS.items():
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")


def _count_writes(operation: torch._ops.OpOverload, written: tuple[int, ...]) -> Callable[..., Any]:
    """In front of every implementation: a compiled one writes memory that autograd does not see being written."""

    def count_and_run(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        for position in written:
            if position < len(args) and args[position] is not None and not args[position].is_inference():
                torch.autograd.graph.increment_version(args[position])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return operation.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    return count_and_run


def count_writes(name: str, written: tuple[int, ...]) -> None:
    """Let ``snnet::name`` count its writes to the arguments at the positions ``written``."""
    counted = _count_writes(getattr(torch.ops.snnet, name).default, written)
    LIBRARY.impl(name, counted, "ADInplaceOrView", with_keyset=True)


for _name, _written in {"write_labels_": (0, 1), "mine_labels_": (4, 5), "update_memory_": (0, 4, 6)}.items():
    count_writes(_name, _written)


def _save_memory(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _similarity_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (memory,) = ctx.saved_tensors
    return torch.ops.snnet.memory_similarity_backward.default(grad.contiguous(), memory), None


def _similarity_second_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (memory,) = ctx.saved_tensors
    return torch.ops.snnet.memory_similarity.default(grad.contiguous(), memory), None


def _save_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """The forward pass has computed the gradient already: keep it."""
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.no_gradients = [
        [None] * len(value) if isinstance(value, list) and isinstance(value[0], Tensor) else None
        for value in inputs[1:]
    ]


def _loss_gradient(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the mutual label loss can be differentiated once only (create_graph=True was asked)"
        )
    (grad,) = ctx.saved_tensors
    return (grad * grad_loss, *ctx.no_gradients)


torch.library.register_autograd(
    "snnet::memory_similarity", _similarity_gradient, setup_context=_save_memory, lib=LIBRARY
)
torch.library.register_autograd(
    "snnet::memory_similarity_backward", _similarity_second_gradient, setup_context=_save_memory, lib=LIBRARY
)
torch.library.register_autograd(
    "snnet::mutual_label_loss", _loss_gradient, setup_context=_save_gradient, lib=LIBRARY
)
torch.library.register_autograd(
    "snnet::fused_mutual_label_loss", _loss_gradient, setup_context=_save_gradient, lib=LIBRARY
)
