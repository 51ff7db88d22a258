"""The stateful parts: exemplar memory, pseudo label memory, loss.

Their tensors are buffers: they follow ``.to(device)``, stay float32 and uint8 under ``.half()`` and
``.bfloat16()``, and are saved by ``state_dict()``. What can be recomputed (the similarity cache, the
transposed label bits) is not saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .memory_size import free_memory
from .reference import CacheBlocks

CACHE_SHARE = 0.4  # of the free memory: what a similarity cache may take with cache="auto"


class FixedTypeModule(nn.Module):
    """A module whose buffers move between devices but keep their types."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedTypeModule:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        return super()._apply(move, recurse)


class ExemplarMemory(FixedTypeModule):
    """The most recent feature of every image, M [n, d], and optionally its similarities S = M Mᵀ [n, n].

    Args:
        num_instances: number of images n.
        feature_dim: feature dimensions d.
        cache: keep S, 4n² bytes, so that labels need no product: ``True``, ``False`` or ``"auto"``, which
            keeps it where it takes at most 40 % of the memory that is free at :meth:`initialize_`, or, after a
            state was loaded, when it is first needed.
        block_floor: of the marked blocks, which labels look into instead of whole rows of S: best the threshold of
            the labels. With another threshold they are the same labels, found with more reading.

    Buffers: ``features`` float32 [n, d]; ``cache`` float32 [n, n] and ``block_bits``, its marked blocks, or None
    (built at first use, not saved).
    """

    features: Tensor
    cache: Tensor | None
    block_bits: Tensor | None

    def __init__(
        self,
        num_instances: int,
        feature_dim: int,
        cache: bool | str = "auto",
        *,
        block_floor: float = 0.6,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        num_instances = ops.checks.check_count("num_instances", num_instances)
        feature_dim = ops.checks.check_count("feature_dim", feature_dim)
        if not (isinstance(cache, bool) or (isinstance(cache, str) and cache == "auto")):
            raise ValueError(f"cache must be True, False or 'auto', got {cache!r}")
        self.num_instances = num_instances
        self.feature_dim = feature_dim
        self.cache_mode = cache
        self.register_buffer("features", torch.zeros(num_instances, feature_dim, device=device))
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("block_bits", None, persistent=False)
        self.block_floor = ops.checks.check_finite("block_floor", block_floor)
        self._cached_version: int | None = None
        self._keeps_cache: bool | None = None if cache == "auto" else bool(cache)

    @property
    def version(self) -> int:
        """Counts the writes to ``features``; the same number means the same content."""
        return self.features._version

    @property
    def keeps_cache(self) -> bool:
        """Whether S is kept; with ``cache="auto"`` decided when it is first asked, and then for good.

        A traced call does not decide: until then S is kept where it is there.
        """
        if self._keeps_cache is None:
            if torch.compiler.is_compiling():
                return self.cache is not None
            needed = 4 * self.num_instances**2
            self._keeps_cache = needed <= CACHE_SHARE * free_memory(self.features.device)
        return self._keeps_cache

    def drop_cache_(self) -> None:
        """Free S; it is built again when labels are next asked for."""
        self.cache, self.block_bits, self._cached_version = None, None, None

    def rebuild_cache_(self) -> None:
        """Compute S afresh from ``features`` where a cache is kept; drops the rounding of earlier updates."""
        self.drop_cache_()  # first: there is room for one
        if self.keeps_cache:
            self.cache = ops.build_similarity_cache(self.features)
            self._cached_version = self.version
            self.block_bits = ops.mark_cache_blocks(self.cache, self.block_floor).bits

    def current_cache(self) -> Tensor | None:
        """S [n, n] of the features as they are now, or None where no cache is kept.

        A traced call takes the cache that is there, or none: build it before, and do not write ``features``
        other than by the methods of this class.
        """
        if torch.compiler.is_compiling():
            return self.cache
        if self.keeps_cache and (self.cache is None or self._cached_version != self.version):
            self.rebuild_cache_()
        return self.cache

    def current_blocks(self) -> CacheBlocks | None:
        """The marked blocks of S as it is now (:func:`snnet_kernels.mark_cache_blocks`), or None where no cache is
        kept. A traced call takes those that are there."""
        if self.current_cache() is None or self.block_bits is None:
            return None
        return CacheBlocks(self.block_bits, self.block_floor)

    def initialize_(self, features: Tensor) -> None:
        """Fill the memory with the L2-normalised ``features`` [n, d] of an extraction pass.

        The cache is built when labels are first asked for, or by :meth:`rebuild_cache_`: do the latter before a
        compiled step, which takes the cache that is there. Raises ValueError where a row is not finite, or neither
        of length 1 nor zero (reads its values: on a GPU the host waits).
        """
        features = ops.checks.check_features("features", features, self.feature_dim)
        if len(features) != self.num_instances:
            expected = [self.num_instances, self.feature_dim]
            raise ValueError(f"features must have shape {expected}, got {list(features.shape)}")
        ops.checks.check_lengths("features", features)
        with torch.no_grad():
            self.features.copy_(features)
        self.drop_cache_()
        if not torch.compiler.is_compiling():
            _ = self.keeps_cache  # decided here, where the host may look at its memory

    def similarity(self, features: Tensor) -> Tensor:
        """s = f Mᵀ [B, n] of ``features`` [B, d] (Eq. 1); see :func:`snnet_kernels.memory_similarity`."""
        return ops.memory_similarity(features, self.features)

    def predict_labels(
        self,
        index: Tensor,
        threshold: float = 0.6,
        min_rank: int = 10,
        *,
        query_rows: Tensor | None = None,
        strict: bool = False,
    ) -> Tensor:
        """Packed pseudo labels uint8 [B, label_bytes(n)] of ``index`` [B]; see :func:`snnet_kernels.mplp`."""
        return ops.mplp(
            self.features,
            index,
            threshold,
            min_rank,
            cache=self.current_cache(),
            query_rows=query_rows,
            blocks=self.current_blocks(),
            strict=strict,
        )

    def nearest(
        self, index: Tensor, k: int = 1, *, query_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest other images; see :func:`snnet_kernels.nearest_neighbors`."""
        return ops.nearest_neighbors(
            self.features, index, k, cache=self.current_cache(), query_rows=query_rows
        )

    def update_(
        self, index: Tensor, features: Tensor, momentum: float | Tensor, *, similarity: Tensor | None = None
    ) -> None:
        """Momentum update of M and of the cache; see :func:`snnet_kernels.update_memory_`."""
        cache, blocks = self.current_cache(), self.current_blocks()
        ops.update_memory_(
            self.features, index, features, momentum, cache=cache, similarity=similarity, blocks=blocks
        )
        if cache is not None and not torch.compiler.is_compiling():
            self._cached_version = self.version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExemplarMemory:
        self.drop_cache_()  # a moved buffer counts its writes from 0 again
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.drop_cache_()

    def extra_repr(self) -> str:
        return f"{self.num_instances}, {self.feature_dim}, cache={self.cache_mode!r}"


class PseudoLabelMemory(FixedTypeModule):
    """The most recent main label of every image, P [n, n] as bits, with its transpose; starts as identity.

    A column P[:, i] (Eq. 4) is a contiguous row of the transpose. Takes 2 · n · label_bytes(n) bytes.

    Buffers: ``row_bits`` and ``column_bits`` uint8 [n, label_bytes(n)] (only the first is saved).
    """

    row_bits: Tensor
    column_bits: Tensor

    def __init__(self, num_instances: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        num_instances = ops.checks.check_count("num_instances", num_instances)
        self.num_instances = num_instances
        shape = (num_instances, ops.label_bytes(num_instances))
        needed = 2 * shape[0] * shape[1]
        free = free_memory(torch.empty(0, device=device).device)
        if needed > free:
            raise MemoryError(
                f"num_instances={num_instances} needs {needed / 2**30:.1f} GiB for the pseudo label memory "
                f"(two bit matrices), {free / 2**30:.1f} GiB are free"
            )
        self.register_buffer("row_bits", torch.zeros(shape, dtype=torch.uint8, device=device))
        diagonal = torch.arange(num_instances, device=device)
        bit = torch.bitwise_left_shift(torch.ones_like(diagonal), diagonal % 8).to(torch.uint8)
        self.row_bits[diagonal, diagonal // 8] = bit
        self.register_buffer("column_bits", self.row_bits.clone(), persistent=False)

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels (Eq. 3): ``index`` int64 [B], packed ``labels`` uint8 [B, label_bytes(n)].

        Of a repeated index the last row counts.
        """
        ops.write_labels_(self.row_bits, self.column_bits, index, labels)

    def rows(self, index: Tensor) -> Tensor:
        """P[index], packed, uint8 [B, label_bytes(n)]: the labels of images ``index`` [B] (Eq. 6), empty at -1."""
        return ops.gather_labels(self.row_bits, index)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ, packed, uint8 [B, label_bytes(n)]: who has images ``index`` [B] as positive (Eq. 4)."""
        return ops.gather_labels(self.column_bits, index)

    def to_dense(self) -> Tensor:
        """P as bool [n, n], n² bytes."""
        return ops.unpack_labels(self.row_bits, self.num_instances)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        n, block = self.num_instances, 1024
        for start in range(0, n, block):  # a block of rows of P is a block of columns of its transpose
            part = ops.unpack_labels(self.row_bits[start : start + block], n)
            packed = ops.pack_labels(part.t())
            self.column_bits[:, start // 8 : start // 8 + packed.shape[1]] = packed

    def extra_repr(self) -> str:
        return str(self.num_instances)


class MutualLabelLoss(nn.Module):
    """Joint loss of one to three label sets as a module; see :func:`snnet_kernels.mutual_label_loss`.

    Args:
        weights: λ of each label set: base, symmetric, neighbor (Eq. 8).
        kind: ``"mmcl"`` or ``"l2"``.
        delta: weight of the positives (``"mmcl"``).
        hard_negative_ratio: share of the negatives that counts as hard (``"mmcl"``).
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 0.8, 0.6),
        *,
        kind: str = "mmcl",
        delta: float = 5.0,
        hard_negative_ratio: float = 0.01,
    ) -> None:
        super().__init__()
        options = ops.checks.check_loss_options(kind, delta, hard_negative_ratio)
        self.weights = tuple(ops.checks.check_weights(weights))
        self.kind, self.delta, self.hard_negative_ratio = options

    def forward(self, similarity: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """The loss [] of ``similarity`` [B, n] for as many packed label sets as there are weights."""
        return ops.mutual_label_loss(similarity, labels, self.weights, **self.options())

    def options(self) -> dict[str, Any]:
        return {"kind": self.kind, "delta": self.delta, "hard_negative_ratio": self.hard_negative_ratio}

    def extra_repr(self) -> str:
        return f"weights={self.weights}, " + ", ".join(f"{k}={v!r}" for k, v in self.options().items())
