"""The product s = f Mᵀ of the live features with the memory: torch's own, on a CPU as a batch of tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import snnet_kernels as sk

from ..case import Batch, Case
from ..equality import ROUNDING, close
from ..operation import Operation
from ..pytorch import PRODUCTS


def gate(case: Case, batch: Batch, similarity: Any, absolute: float = ROUNDING) -> None:
    expected = (batch.features.double() @ case.memory.double().t()).float()
    close("similarity", torch.as_tensor(similarity, device=case.device), expected, absolute=absolute)


similarity = Operation("similarity", "The product f Mᵀ", gate)
OPERATIONS = (similarity,)


def ours(case: Case) -> Any:
    return lambda batch: sk.memory_similarity(batch.features, case.memory)


similarity.contender("snnet", ours)
similarity.rounded(ours, tf32x3=partial(gate, absolute=1e-3), tf32=partial(gate, absolute=1e-3))


def written_as(product: Callable[[Tensor, Tensor], Tensor]) -> Any:
    return lambda case: lambda batch: product(batch.features, case.memory)


for _name, _product in PRODUCTS.items():
    similarity.contender(_name, written_as(_product))
