"""The three classes of the MMCL authors' training code, with their signatures and results.

A trainer written for those classes runs on this package by changing its imports. If one hundredth of the negatives is
less than one, the original has no hard negative and returns NaN; these classes take one and return a number.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks, ops
from ..derived import row_checksums
from ..memory_module import MemoryModule
from ..tracing import has_values
from .followed_lists import MIN_RANK, FollowedLists
from .layer import MemoryLayer, check_inputs

EPOCHS = 60  # divisor of the memory momentum in the original, for any length of the run


class MPLP:
    """Label prediction with threshold ``t``.

    If the memory is that of a :class:`Memory`, or a copy of it, labels are read from neighbour lists, which that module
    then keeps: 3 KB an image, 2 KB on a GPU. Otherwise similarities are computed. They are also computed for some steps
    after the memory was written by anything but that module's backward pass. The labels are the same. Threads take
    turns at the lists.
    """

    def __init__(self, t: float = 0.6) -> None:
        self.t = t

    def predict(self, memory: Tensor, targets: Tensor) -> Tensor:
        """Multi-labels of the images ``targets`` int64 [B], from ``memory`` [n, d]: float32 [B, n] in {0, 1}."""
        threshold = checks.check_finite("t", self.t)
        memory = checks.check_matrix("memory", memory).detach()
        targets = checks.check_index("targets", targets, memory.shape[0])
        checks.check_same_device(memory=memory, targets=targets)
        rows = memory.float().contiguous()
        with _TURN:
            lists = _lists_of(memory)
            labels = None if lists is None else lists.mplp(rows, targets, threshold)
        if labels is None:
            labels = ops.mplp(rows, targets, threshold, MIN_RANK)
        return ops.unpack_labels(labels, memory.shape[0]).float()


class MMCL(nn.Module):
    """Memory-based multi-label classification loss of logits [B, n]."""

    def __init__(self, delta: float = 5.0, r: float = 0.01) -> None:
        super().__init__()
        self.delta = delta
        self.r = r

    def forward(self, inputs: Tensor, targets: Tensor, is_vec: bool = False) -> Tensor:
        """The loss [] of ``inputs`` [B, n]; ``targets`` are image indices [B], or labels [B, n] with ``is_vec``.

        Labels above 0.5 are positive, the others negative. (In the original one of exactly 0.5 is neither.)
        """
        inputs = checks.check_matrix("inputs", inputs, "B", "n")
        checks.check_floating("inputs", inputs)
        ratio = checks.check_share("r", self.r)
        if is_vec:
            targets = checks.check_tensor("targets", targets, "[B, n]")
            if targets.shape != inputs.shape:
                raise ValueError(
                    f"targets must have the shape of inputs {tuple(inputs.shape)}, got {tuple(targets.shape)}"
                )
            labels = targets > 0.5
        else:
            targets = checks.check_index("targets", targets, inputs.shape[1], inputs.shape[0])
            labels = torch.zeros(inputs.shape, dtype=torch.bool, device=inputs.device)
            labels.scatter_(1, targets[:, None], True)
        return ops.mutual_label_loss(
            inputs, [ops.pack_labels(labels)], [1.0], delta=self.delta, hard_negative_ratio=ratio
        )


class Memory(MemoryModule):
    """Exemplar memory ``mem`` [num_classes, num_features]. It starts with zeros, and is updated during backward."""

    mem: Tensor

    def __init__(self, num_features: int, num_classes: int, alpha: float = 0.01) -> None:
        super().__init__()
        self.num_features = checks.check_count("num_features", num_features)
        self.num_classes = checks.check_count("num_classes", num_classes, lowest=0)
        self.alpha = checks.check_share("alpha", alpha)
        self.mem = nn.Parameter(
            torch.zeros(self.num_classes, self.num_features, dtype=torch.float32), requires_grad=False
        )
        self._followed = FollowedLists()  # not part of the state
        _enlist(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _enlist(self)

    def forward(self, inputs: Tensor, targets: Tensor, epoch: float | None = None) -> Tensor:
        """Logits [B, num_classes] of ``inputs`` [B, num_features]; α is 0.5·epoch/60 (at most 1) if epoch is given."""
        self._refuse_replication()
        inputs = check_inputs(inputs, self.mem)
        if epoch is not None and not checks.check_number("epoch", epoch) >= 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        targets = checks.check_index("targets", targets, self.num_classes, inputs.shape[0])
        alpha = checks.check_share("alpha", self.alpha) if epoch is None else min(0.5 * epoch / EPOCHS, 1.0)
        update = functools.partial(self._learn, alpha, self._followed.updates)
        return MemoryLayer.apply(inputs, targets, self.mem.detach(), update, True)

    def _learn(
        self,
        alpha: float,
        updates: int,
        memory: Tensor,
        targets: Tensor,
        inputs: Tensor,
        logits: Tensor | None,
    ) -> None:
        with _TURN:
            self._followed.update_(memory, targets, inputs, alpha, logits, updates)


_MEMORIES: weakref.WeakSet[Memory] = weakref.WeakSet()
_TURN = threading.Lock()  # of whoever finds, reads or updates lists: those of equal memories are shared


def _enlist(memory: Memory) -> None:
    with _TURN:
        _MEMORIES.add(memory)


def _lists_of(memory: Tensor) -> FollowedLists | None:
    """The lists of the module whose ``mem`` this is, or is a copy of; the caller has its turn."""
    owners = [owner for owner in list(_MEMORIES) if owner.mem.shape == memory.shape]
    if not owners or not has_values(memory) or memory.dtype != torch.float32:
        return None
    sums = row_checksums(memory)
    for owner in owners:
        if owner._followed.are_of(sums):
            return owner._followed
    for owner in owners:
        if owner.mem.device == memory.device and torch.equal(owner.mem, memory):
            owner._followed.follow_(sums)
            return owner._followed
    return None
