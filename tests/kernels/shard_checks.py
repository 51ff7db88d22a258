"""What the tests of the operations of one of several processes share."""

from __future__ import annotations

import torch
from torch import Tensor

from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.ops.operation import OPERATIONS

N, D, FIRST = 160, 12, 64


def shard(lists: NeighborLists) -> list[Tensor]:
    return [table[FIRST:].clone() for table in lists[:4]]


def both_forms(name: str, *arguments: object) -> list[tuple[object, list[Tensor]]]:
    """What the compiled form and the plain one return, and what the tensors given are afterwards."""
    found = []
    for call in (getattr(torch.ops.snnet, name), OPERATIONS[name].plain):
        own = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
        result = call(*own)
        found.append((result, [value for value in own if isinstance(value, Tensor)]))
    return found


def listed(tables: list[Tensor]) -> list[set[tuple[int, float]]]:
    columns, values, counts, _ = tables
    return [
        set(zip(columns[row, :count].tolist(), values[row, :count].tolist(), strict=True))
        for row, count in enumerate(counts.tolist())
    ]


def triples(pairs: tuple[Tensor, ...]) -> list[tuple]:
    return sorted(zip(*(part.tolist() for part in pairs), strict=True))
