"""Products of rows of the memory in float32, with the bits that one process gives them."""

from __future__ import annotations

from torch import Tensor

from ..ops.similarity import float32_similarity


def row_products(rows: Tensor, memory: Tensor) -> Tensor:
    """``rows`` [m, d] times ``memory`` [n, d] transposed, [m, n]: on the CPU each depends on its two rows alone.

    :func:`snnet_kernels.memory_similarity` sums a single row in another order.
    """
    if len(rows) == 1:
        return float32_similarity(rows.expand(2, -1), memory)[:1]
    return float32_similarity(rows, memory)
