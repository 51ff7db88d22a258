"""The inputs of one shape, the same for all contenders.

Features are clustered like those of a re-identification network in training
(:func:`snnet_kernels.testing.clustered_features`): unequal clusters, hubs between them, about 17 images above
the threshold 0.6 for each image, a fifth or more of which fail the cycle check. The batches are fixed and every
round takes the next one, so that a processor's cache holds no row of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.memory_size import free_memory
from snnet_kernels.testing import clustered_features

from .shapes import SIZES, Shape

THRESHOLD, MIN_RANK, MOMENTUM = 0.6, 10, 0.3
WEIGHTS = (1.0, 0.8, 0.6)
IDENTITIES_OF_MARKET = 751
MOST_OF_FREE_MEMORY = 0.7


class Unavailable(Exception):
    """Why something cannot be measured here; the benchmark is skipped with this reason."""


@dataclass
class Batch:
    """One batch; what is None here has not been asked for with :meth:`Case.prepare`."""

    index: Tensor  # int64 [B]
    features: Tensor  # [B, d], live features: near their rows of the memory
    similarity: Tensor | None = None  # [B, n], s = f Mᵀ
    labels: tuple[Tensor, Tensor, Tensor] | None = None  # main, symmetric, neighbour: packed [B, label_bytes]
    dense_labels: tuple[Tensor, ...] | None = None  # the same as bool [B, n]

    @property
    def size(self) -> int:
        return self.index.shape[0]

    def first(self, samples: int) -> Batch:
        """The first ``samples`` entries, for forms that are too slow for all of them."""

        def cut(value: Tensor | tuple[Tensor, ...] | None) -> Tensor | tuple[Tensor, ...] | None:
            if value is None:
                return None
            return value[:samples] if isinstance(value, Tensor) else tuple(part[:samples] for part in value)

        return Batch(**{field.name: cut(getattr(self, field.name)) for field in dataclasses.fields(self)})


class Case:
    """Memory, cache, label memory and batches of one shape on one device."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.identities = max(2, round(shape.n * IDENTITIES_OF_MARKET / SIZES["market"]))
        self.memory = clustered_features(shape.n, shape.d, identities=self.identities).to(device)
        self.momentum = torch.tensor(MOMENTUM, device=device)
        self.batches = self._draw_batches()
        self._before: dict[str, Tensor] = {}

    def _draw_batches(self) -> list[Batch]:
        n, batch = self.shape.n, self.shape.batch
        count = 16 if batch * n <= 10_000_000 else 2
        generator = torch.Generator().manual_seed(0)
        batches = []
        for _ in range(count):
            index = torch.randperm(n, generator=generator)[:batch].to(self.device)
            noise = normalize(torch.randn(batch, self.shape.d, generator=generator), dim=1).to(self.device)
            batches.append(Batch(index, normalize(self.memory[index] + 0.3 * noise, dim=1)))
        return batches

    @cached_property
    def cache_fits(self) -> bool:
        return self.shape.cache_bytes <= MOST_OF_FREE_MEMORY * free_memory(self.device)

    @cached_property
    def cache(self) -> Tensor:
        """S = M Mᵀ [n, n]."""
        if not self.cache_fits:
            self.check_room(f"the similarity cache of {self.shape.n} images", self.shape.cache_bytes)
        return sk.build_similarity_cache(self.memory)

    @cached_property
    def blocks(self) -> sk.CacheBlocks:
        """The marked blocks of S, which only our forms keep current."""
        return sk.mark_cache_blocks(self.cache, THRESHOLD)

    @cached_property
    def _marks(self) -> Tensor:
        """The bits of these blocks before anyone has written the cache."""
        return self.blocks.bits.clone()

    @cached_property
    def scratch_memory(self) -> Tensor:
        """A second memory [n, d], for forms that keep no cache and write the memory."""
        return self.memory.clone()

    @cached_property
    def label_memory(self) -> sk.PseudoLabelMemory:
        """P with the main label of every image."""
        labels = sk.PseudoLabelMemory(self.shape.n, device=self.device)
        candidates = rejected = 0
        for start in range(0, self.shape.n, 1024):
            index = torch.arange(start, min(start + 1024, self.shape.n), device=self.device)
            found = sk.mplp(self.memory, index, THRESHOLD, MIN_RANK, cache=self.cache)
            above = self.cache[index] > THRESHOLD
            candidates += int(above.sum())
            rejected += int((above & ~sk.unpack_labels(found, self.shape.n)).sum())
            labels.write_(index, found)
        if not (4 < candidates / self.shape.n < 25 and rejected / candidates > 0.2):
            raise AssertionError(
                f"{candidates / self.shape.n:.1f} candidates an image, {rejected / candidates:.0%} of them "
                "rejected: these inputs are not those that the benchmarks are about"
            )
        return labels

    def label_rows(self, index: Tensor) -> Tensor:
        """P[index] as bool [len(index), n]."""
        return sk.unpack_labels(self.label_memory.rows(index), self.shape.n)

    def check_room(self, what: str, needed: int) -> None:
        """Raise Unavailable where ``needed`` bytes more would take nearly all that is free."""
        if needed > MOST_OF_FREE_MEMORY * free_memory(self.device):
            raise Unavailable(f"{what} needs {needed / 1e9:.1f} GB, which is not free")

    def prepare(self, *inputs: str) -> None:
        """Make the named inputs, of this class or of its batches, before any clock runs.

        Raises Unavailable where memory is short.
        """
        for name in inputs:
            if name == "label_memory":
                _ = self.label_memory
                continue
            if name == "cache":  # before anyone has written it
                _ = self._marks
                continue
            if name == "cache_where_it_fits":
                if self.cache_fits:
                    self.prepare("cache")
                continue
            for batch in self.batches:
                if getattr(batch, name) is None:
                    setattr(batch, name, getattr(self, f"_make_{name}")(batch))

    def _make_similarity(self, batch: Batch) -> Tensor:
        return reference.memory_similarity(batch.features, self.memory)

    def _make_labels(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        if self.cache_fits:
            neighbor = sk.nearest_neighbors(self.memory, batch.index, cache=self.cache)[0][:, 0]
            main = sk.mplp(self.memory, batch.index, THRESHOLD, MIN_RANK, cache=self.cache)
            return main, self.label_memory.columns(batch.index), self.label_memory.rows(neighbor)
        # Without room for P: the labels of two neighbours in place of the symmetric and the neighbour label.
        neighbors = sk.nearest_neighbors(self.memory, batch.index, 2)[0]
        first, second = (neighbors[:, k].contiguous() for k in range(2))
        return tuple(sk.mplp(self.memory, i, THRESHOLD, MIN_RANK) for i in (batch.index, first, second))

    def _make_dense_labels(self, batch: Batch) -> tuple[Tensor, ...]:
        if batch.labels is None:
            batch.labels = self._make_labels(batch)
        return tuple(sk.unpack_labels(labels, self.shape.n) for labels in batch.labels)

    @cached_property
    def _touched(self) -> Tensor:
        """The images of all batches, which are all that any contender writes."""
        return torch.cat([batch.index for batch in self.batches]).unique()

    def save(self) -> None:
        """Remember what in-place contenders write, for :meth:`restore_`."""
        self._before["memory"] = self.memory[self._touched]
        if "cache" in self.__dict__:
            self._before["cache"] = self.cache[self._touched]
        if "label_memory" in self.__dict__:
            self._before["labels"] = self.label_memory.rows(self._touched)

    def restore_(self, index: Tensor | None = None) -> None:
        """Put back what :meth:`save` remembered, of the images ``index`` if it is given, in all that was made."""
        if not self._before:
            return
        partly = index is not None
        index = self._touched if index is None else index
        place = torch.searchsorted(self._touched, index)
        before = {name: values[place] for name, values in self._before.items()}
        self.memory[index] = before["memory"]
        if "scratch_memory" in self.__dict__:
            self.scratch_memory[index] = before["memory"]
        if "cache" in self.__dict__ and "cache" not in before:
            raise AssertionError("the cache was made after save(): it cannot be put back")
        if "blocks" in self.__dict__:  # all of the bits: after others have written the cache nothing may lack
            self.blocks.bits.copy_(self.blocks.bits | self._marks if partly else self._marks)
        if "cache" in before:
            self.cache[index] = before["cache"]
            self.cache[:, index] = before["cache"].t()
        if "labels" in before:
            self.label_memory.write_(index, before["labels"])

    @cached_property
    def walked_images(self) -> Tensor:
        """Distinct images of the first batch's main labels whose rank has to be counted in full: they passed."""
        index = self.batches[0].index
        cache = self.cache if self.cache_fits else None
        labels = sk.unpack_labels(sk.mplp(self.memory, index, THRESHOLD, MIN_RANK, cache=cache), self.shape.n)
        passed = labels[labels.sum(1) > 2]  # up to two positives stand without a check
        return passed.any(0).nonzero().flatten()

    @cached_property
    def walked_bytes(self) -> float:
        """What a count of their ranks has to read of S: the blocks above the threshold, and which these are."""
        if not self.cache_fits:
            return 4.0 * len(self.walked_images) * self.shape.n
        high = sk.unpack_labels(self._marks[self.walked_images], -(-self.shape.n // 32))
        return 4.0 * 32 * int(high.sum()) + high.numel() / 8
