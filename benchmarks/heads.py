"""SNNetHead on the inputs of a case, and the loss that it is to give."""

from __future__ import annotations

from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import reference

from .case import MIN_RANK, MOMENTUM, THRESHOLD, WEIGHTS, Batch, Case


def head_of(case: Case, *, cache: bool) -> sk.SNNetHead:
    """A head of its own with the content of the case."""
    head = sk.SNNetHead(case.shape.n, case.shape.d, cache=cache, weights=WEIGHTS, device=case.device)
    head.momentum = MOMENTUM
    fill(head, case)
    return head


def fill(head: sk.SNNetHead, case: Case) -> None:
    """Give ``head`` the content of the case, in place."""
    head.memory.features.copy_(case.memory)
    head.pseudo_labels.row_bits.copy_(case.label_memory.row_bits)
    head.pseudo_labels.column_bits.copy_(case.label_memory.column_bits)
    head.pseudo_labels._vouch_for_columns()
    if head.memory.keeps_cache:  # a copy of S in place of the product that would make it
        if head.memory.cache is None:
            head.memory.cache, head.memory.block_bits = case.cache.clone(), case.blocks.bits.clone()
        head.memory.cache.copy_(case.cache)
        head.memory.block_bits.copy_(case.blocks.bits)
        head.memory._notice()
        head.memory._vouch_for_cache()


def expected_loss(case: Case, batch: Batch, cache: Tensor | None) -> tuple[Tensor, Tensor]:
    """The reference's loss of ``batch`` and its gradient, labels predicted over ``cache`` or by products."""
    neighbor = reference.nearest_neighbors(case.memory, batch.index, cache=case.cache)[0][:, 0]
    sets = [
        reference.mplp(case.memory, batch.index, THRESHOLD, MIN_RANK, cache=cache),
        case.label_memory.columns(batch.index),
        case.label_memory.rows(neighbor),
    ]
    return reference.fused_mutual_label_loss_with_grad(
        batch.features, case.memory, None, sets, list(WEIGHTS), "mmcl", 5.0, 0.01
    )
