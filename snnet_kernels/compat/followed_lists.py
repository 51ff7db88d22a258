"""Neighbour lists of a memory that other code may write."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..derived import row_checksums
from ..head import BELOW_THRESHOLD
from ..memory_lists import MemoryLists

PLACES = 256
MIN_RANK = 10  # of the original
# Of n images: so many labels without lists take as long as a build (measured on a CPU).
LABELS_OF_A_BUILD = 1 / 12


class FollowedLists:
    """Lists of a tensor [n, d], and the checksums of the rows that they belong to.

    The checksums detect every write to the tensor before a label is read.
    """

    def __init__(self) -> None:
        self.lists = MemoryLists(PLACES, 0.0)  # a build sets the floor
        self.lists.remedy = "Raise the threshold t of MPLP"
        self._sums: Tensor | None = None
        self._were_built = False
        self._spare = 0.0  # labels that are still predicted without lists before these are built
        self.updates = 0  # of the memory, by a module

    def are_of(self, sums: Tensor) -> bool:
        """Whether these lists belong to a memory whose rows have the checksums ``sums`` int64 [n]."""
        own = self._sums
        return own is not None and own.device == sums.device and torch.equal(own, sums)

    def follow_(self, sums: Tensor) -> None:
        """Belong to a memory whose rows have the checksums ``sums``, which are kept; lists are built for labels.

        They are built at once the first time. Later another has written the memory, and may do so at every step.
        """
        self.lists.drop_()
        self._sums = sums
        self._spare = LABELS_OF_A_BUILD * len(sums) if self._were_built else 0.0

    def mplp(self, memory: Tensor, index: Tensor, threshold: float) -> Tensor:
        """:func:`snnet_kernels.mplp` of the ``memory`` that these lists belong to; the caller has checked all.

        There is no call once an epoch: lists are built again as soon as their products have cost as much as a build,
        and where they start above the threshold. After a write from outside they are built once labels without them
        have cost as much.
        """
        lists = self.lists
        if self._spare >= len(index):
            self._spare -= len(index)
            return ops.mplp(memory, index, threshold, MIN_RANK)
        self._spare = 0.0
        if lists.tables is None or threshold < lists.floor or lists.are_worn():
            lists.drop_()  # an interrupted build leaves none
            lists.floor = threshold - BELOW_THRESHOLD
            lists.build_(memory)
            self._were_built = True
        return lists.mplp(memory, index, threshold, MIN_RANK, None)

    def update_(
        self,
        memory: Tensor,
        index: Tensor,
        features: Tensor,
        momentum: float,
        similarity: Tensor | None,
        updates: int,
    ) -> None:
        """:func:`snnet_kernels.update_memory_` of the memory, and of the lists if they belong to it.

        ``similarity`` was made when there were so many ``updates``, and is not read if there are more by now.
        """
        if self.updates != updates:
            similarity = None
        self.updates += 1
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
