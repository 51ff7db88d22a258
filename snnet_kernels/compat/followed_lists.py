"""Neighbour lists of a memory that other code may write."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..derived import row_checksums
from ..exemplar_memory import FLOOR
from ..memory_lists import MemoryLists

PLACES = 256


class FollowedLists:
    """Lists of a tensor [n, d], and the checksums of the rows that they were made from.

    The checksums detect every write to the tensor before a label is read.
    """

    def __init__(self) -> None:
        self.lists = MemoryLists(PLACES, FLOOR)
        self._sums: Tensor | None = None

    def are_of(self, sums: Tensor) -> bool:
        """Whether these lists belong to a memory whose rows have the checksums ``sums`` int64 [n]."""
        own = self._sums
        return own is not None and own.device == sums.device and torch.equal(own, sums)

    def build_(self, memory: Tensor, sums: Tensor) -> None:
        """Build the lists of ``memory`` [n, d], whose row checksums are ``sums``."""
        self.lists.build_(memory)
        self._sums = sums.clone()

    def update_(
        self, memory: Tensor, index: Tensor, features: Tensor, momentum: float, similarity: Tensor | None
    ) -> None:
        """:func:`snnet_kernels.update_memory_` of the memory, and of the lists if they belong to it."""
        own = self._sums
        if own is None or own.device != memory.device:
            ops.update_memory_(memory, index, features, momentum)
            return
        if not torch.equal(own[index], row_checksums(memory, index)):
            self.lists.drop_()
            self._sums = None
            ops.update_memory_(memory, index, features, momentum)
            return
        ops.update_memory_(memory, index, features, momentum, lists=self.lists.tables, similarity=similarity)
        own.index_copy_(0, index, row_checksums(memory, index))
