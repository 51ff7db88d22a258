"""The inputs of one shape, the same for all contenders.

Features are clustered like those of a re-identification network in training
(:func:`snnet_kernels.testing.clustered_features`): unequal clusters, hubs between them, about 17 images above
the threshold 0.6 for each image, a fifth or more of which fail the cycle check. The batches are fixed. Each round
takes the next one, so no row of it is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.exemplar_memory import FLOOR
from snnet_kernels.memory_size import free_memory
from snnet_kernels.testing import clustered_features

from .shapes import SIZES, Shape

THRESHOLD, MIN_RANK, MOMENTUM = 0.6, 10, 0.3
WEIGHTS = (1.0, 0.8, 0.6)
DELTA, RATIO = 5.0, 0.01  # of `mmcl`: weight of the positives, share of hard negatives
NEIGHBORS = 256  # places of a list
IDENTITIES_OF_MARKET = 751
MOST_OF_FREE_MEMORY = 0.7
ROWS_AT_ONCE = 1024


class Unavailable(Exception):
    """Why something cannot be measured here; the benchmark is skipped with this reason."""


class Inputs:
    """Batches of one shape, and the copies of what contenders write."""

    batches: list[Any]

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._resets: list[Callable[[], object]] = []

    def on_reset(self, action: Callable[[], object]) -> None:
        """``action`` puts back something that the contender under measurement writes."""
        self._resets.append(action)

    def own(self, tensor: Tensor) -> Tensor:
        """A copy that a contender may write; :meth:`reset` fills it again."""
        copy = tensor.clone()
        self.on_reset(lambda: copy.copy_(tensor))
        return copy

    def reset(self) -> None:
        """Before each call: put back what the contender has written."""
        for action in self._resets:
            action()

    def forget(self) -> None:
        """Before the next contender: drop the copies of the last one."""
        self._resets.clear()

    def check_room(self, what: str, needed: int) -> None:
        """Raise Unavailable where ``needed`` bytes more would take nearly all that is free."""
        if needed > MOST_OF_FREE_MEMORY * free_memory(self.device):
            raise Unavailable(f"{what} needs {needed / 1e9:.1f} GB, which is not free")


@dataclass(eq=False)
class Batch:
    """Entries of a batch: ``index`` int64 [B], and live ``features`` [B, d] near their rows of the memory."""

    case: Any
    index: Tensor
    features: Tensor

    @property
    def size(self) -> int:
        return len(self.index)

    def first(self, samples: int) -> Batch:
        """The first ``samples`` entries."""
        return Batch(self.case, self.index[:samples], self.features[:samples])

    @cached_property
    def similarity(self) -> Tensor:
        """s = f Mᵀ [B, n]."""
        return reference.memory_similarity(self.features, self.case.memory)

    @cached_property
    def labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Main, symmetric and neighbour labels, packed [B, label_bytes]."""
        case, stored = self.case, self.case.label_memory
        neighbor = sk.nearest_neighbors(case.memory, self.index, lists=case.lists)[0][:, 0]
        return stored.rows(self.index), stored.columns(self.index), stored.rows(neighbor)

    @cached_property
    def expected_labels(self) -> Tensor:
        """The labels of the batch by the reference, without lists."""
        case = self.case
        parts = self.index.split(128)  # the reference writes [B, n]
        return torch.cat([reference.mplp(case.memory, index, THRESHOLD, MIN_RANK) for index in parts])

    @cached_property
    def dense_labels(self) -> tuple[Tensor, ...]:
        """The same as bool [B, n]."""
        return tuple(sk.unpack_labels(labels, self.case.shape.n) for labels in self.labels)


class Case(Inputs):
    """Memory, its lists, label memory and batches of one shape on one device; made when they are first asked for."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        identities = max(2, round(shape.n * IDENTITIES_OF_MARKET / SIZES["market"]))
        self.memory = clustered_features(shape.n, shape.d, identities=identities).to(device)
        self.momentum = torch.tensor(MOMENTUM, device=device)
        generator = torch.Generator().manual_seed(0)
        count = 16 if shape.batch * shape.n <= 10_000_000 else 2
        self.batches: list[Batch] = [self.draw(generator) for _ in range(count)]

    def draw(self, generator: torch.Generator) -> Batch:
        index = torch.randperm(self.shape.n, generator=generator)[: self.shape.batch].to(self.device)
        noise = torch.randn(self.shape.batch, self.shape.d, generator=generator)
        noise = normalize(noise, dim=1).to(self.device)
        return Batch(self, index, normalize(self.memory[index] + 0.3 * noise, dim=1))

    @cached_property
    def lists(self) -> sk.NeighborLists:
        """The neighbour lists of the memory, as :class:`snnet_kernels.ExemplarMemory` builds them."""
        floor = None if self.shape.n <= NEIGHBORS else FLOOR
        return sk.neighbor_lists(self.memory, NEIGHBORS, floor=floor, symmetric=True)

    @cached_property
    def matrix(self) -> Tensor:
        """S = M Mᵀ [n, n], which PyTorch forms keep."""
        n = self.shape.n
        self.check_room(f"the similarity matrix of {n} images, and a copy", 2 * 4 * n**2)
        return self.memory @ self.memory.t()

    @cached_property
    def label_memory(self) -> sk.PseudoLabelMemory:
        """P with the main label of every image."""
        labels = sk.PseudoLabelMemory(self.shape.n, device=self.device)
        for index in torch.arange(self.shape.n, device=self.device).split(ROWS_AT_ONCE):
            labels.write_(index, sk.mplp(self.memory, index, THRESHOLD, MIN_RANK, lists=self.lists))
        candidates = int((self.lists.values > THRESHOLD).sum())
        rejected = 1 - len(labels.pairs()[0]) / candidates
        if not (4 < candidates / self.shape.n < 25 and rejected > 0.2):
            raise AssertionError(
                f"{candidates / self.shape.n:.1f} candidates an image, {rejected:.0%} of them rejected: "
                "these inputs are not those that the benchmarks are about"
            )
        return labels

    def own_label_memory(self) -> sk.PseudoLabelMemory:
        """P for a contender that writes it."""
        source, copy = self.label_memory, sk.PseudoLabelMemory(self.shape.n, device=self.device)
        self.on_reset(lambda: fill_labels(copy, source))
        fill_labels(copy, source)
        return copy

    def own_dense_labels(self, dtype: torch.dtype, *, transposed: bool = False) -> Tensor:
        """P as a matrix of ``dtype`` [n, n], or Pᵀ; a contender may write the batches' rows of P."""
        n = self.shape.n
        self.check_room(f"P as {dtype}", n * n * dtype.itemsize)
        dense = torch.zeros(n, n, dtype=dtype, device=self.device)
        rows, columns = self.label_memory.pairs()
        dense[(columns, rows) if transposed else (rows, columns)] = 1
        written = torch.cat([batch.index for batch in self.batches]).unique()
        before = dense.index_select(int(transposed), written)
        self.on_reset(lambda: dense.index_copy_(int(transposed), written, before))
        return dense

    def label_rows(self, index: Tensor) -> Tensor:
        """P[index] as bool [len(index), n]."""
        return sk.unpack_labels(self.label_memory.rows(index), self.shape.n)

    def label_columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ as bool [len(index), n], from the rows."""
        row, column = self.label_memory.pairs()
        entry = column.new_full((self.shape.n,), -1)
        entry[index] = torch.arange(len(index), device=index.device)
        asked = entry[column] >= 0
        found = torch.zeros(len(index), self.shape.n, dtype=torch.bool, device=index.device)
        found[entry[column[asked]], row[asked]] = True
        return found


def fill_labels(labels: sk.PseudoLabelMemory, source: sk.PseudoLabelMemory) -> None:
    """Copy P in both orientations, bits in place."""
    if source.tables is not None and labels.tables is not None:
        for name, part in source.tables.named_buffers():
            setattr(labels.tables, name, part.clone())
        return
    for copy, part in zip(labels.buffers(), source.buffers(), strict=True):
        copy.copy_(part)
    labels._vouch_for_columns()


def cluster_centers(rng: np.random.Generator, identities: int, d: int) -> np.ndarray:
    """float32 [identities + 1, d]; 0 belongs to no identity, and is the origin."""
    centers = rng.standard_normal((identities + 1, d), dtype=np.float32)
    centers[0] = 0
    return centers


def around(rng: np.random.Generator, centers: np.ndarray, which: np.ndarray, spread: float) -> np.ndarray:
    """Unit rows float32 [len(which), d] at a distance from these centres."""
    drawn = centers[which] + spread * rng.standard_normal((len(which), centers.shape[1]), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
