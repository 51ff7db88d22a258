"""The momentum update of the memory, and of S = M Mᵀ, in plain PyTorch, for batches in which no image comes twice."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize


def blend_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor) -> None:
    """M[index] <- normalize(α M[index] + (1 − α) f)."""
    memory[index] = normalize(momentum * memory[index] + (1 - momentum) * features, dim=1)


def refresh_rows_(matrix: Tensor, memory: Tensor, index: Tensor) -> None:
    """Rows and columns ``index`` of S by a product with the updated memory: what one writes without the recurrence."""
    rows = memory[index] @ memory.t()
    matrix[index] = rows
    matrix[:, index] = rows.t()


def blend_with_matrix_(
    memory: Tensor, matrix: Tensor, index: Tensor, features: Tensor, momentum: Tensor, similarity: Tensor
) -> None:
    """Memory and S by the recurrence, every shape known: written for torch.compile."""
    keep, take = momentum, 1 - momentum
    blended = keep * memory[index] + take * features
    lengths = blended.square().sum(1).sqrt()
    before = matrix[index]
    cross = similarity[:, index]
    block = keep * keep * before[:, index] + keep * take * (cross + cross.t())
    block = (block + take * take * (features @ features.t())) / (lengths[:, None] * lengths)
    rows = (keep * before + take * similarity) / lengths[:, None]
    rows = rows.index_copy(1, index, block)
    memory[index] = blended / lengths[:, None]
    matrix[index] = rows
    matrix[:, index] = rows.t()
