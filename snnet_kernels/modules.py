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
from .derived import Source
from .fixed_type import FixedTypeModule
from .layout import CacheBlocks, block_bytes
from .memory_lists import MemoryLists
from .memory_size import check_room, free_memory

CACHE_SHARE = 0.4  # of the free memory: what a similarity cache may take with cache="auto"
ENTRIES_AT_ONCE = 2**24  # of S that are computed together: bounds the scratch memory


class ExemplarMemory(FixedTypeModule):
    """The most recent feature of every image, M [n, d], and what labels read of its similarities S = M Mᵀ [n, n]:
    all of them (``cache``), the largest of each row (``neighbors``), or nothing, where products are made as needed.

    S, or its lists, follow M. Assignment, in-place operations and ``load_state_dict`` are noticed by themselves. What
    writes past autograd (``torch.distributed``, ``.data``, numpy, DLPack) is noticed on the CPU, in eager mode, where
    it changed a row that a call names, and otherwise has to be said: :meth:`mark_written_`.

    Args:
        num_instances: number of images n.
        feature_dim: feature dimensions d.
        cache: keep S, 4n² bytes, so that labels need no product: ``True``, ``False`` or ``"auto"``, which
            keeps it where it takes at most 40 % of the memory that is free at :meth:`initialize_`, or, after a
            state was loaded, when it is first needed.
        neighbors: keep lists of this many places a row in place of S, 12 bytes a place: the same labels at any number
            of images. 256 are ample where a row has some tens of candidates; 0 keeps no lists.
        block_floor: of the marked blocks, which labels look into instead of whole rows of S: best the threshold of
            the labels. With another threshold they are the same labels, found with more reading.

    Buffers: ``features`` float32 [n, d]; ``cache`` float32 [n, n] and ``block_bits``, its marked blocks, or None
    (built at first use, not saved). Once built they stay where they are, so that a captured CUDA graph may go on
    using them, until :meth:`drop_cache_` or a move to another device.
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
        neighbors: int = 0,
        block_floor: float = 0.6,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        num_instances = ops.checks.check_count("num_instances", num_instances)
        feature_dim = ops.checks.check_count("feature_dim", feature_dim)
        if not (isinstance(cache, bool) or (isinstance(cache, str) and cache == "auto")):
            raise ValueError(f"cache must be True, False or 'auto', got {cache!r}")
        neighbors = ops.checks.check_count("neighbors", neighbors, lowest=0)
        if neighbors and cache is True:
            raise ValueError(f"cache must not be True where neighbors={neighbors} lists take its place")
        self.num_instances = num_instances
        self.feature_dim = feature_dim
        self.cache_mode = cache
        self.lists = MemoryLists(neighbors) if neighbors else None
        with torch.inference_mode(False):
            features = torch.zeros(num_instances, feature_dim, dtype=torch.float32, device=device)
        self.register_buffer("features", features)
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("block_bits", None, persistent=False)
        self.block_floor = ops.checks.check_finite("block_floor", block_floor)
        self._source = Source()  # the features as they are known
        self._changes = 0  # of the features, as far as they are known
        self._cache_follows = False  # S is that of the features as they are known
        self._keeps_cache: bool | None = False if neighbors else None if cache == "auto" else bool(cache)

    @property
    def version(self) -> int:
        """Counts the changes of ``features`` that are known: writes by the methods of this class, writes that were
        noticed (another tensor, in-place operations, changed rows that a call named) and :meth:`mark_written_`.

        Another number means that the features may have changed. The same number does not mean the same content
        where something wrote past autograd and did not say so.
        """
        self._notice()
        return self._changes

    def _notice(self, rows: Tensor | None = None) -> None:
        """Count a change where the features, or ``rows`` int64 [B] of them, are not what they were."""
        if not torch.compiler.is_compiling() and not self._source.holds(self.features, rows):
            self._count_change()

    def _count_change(self) -> None:
        """The features are others: S is computed afresh when it is next needed."""
        self._cache_follows = False
        if not torch.compiler.is_compiling():
            self._changes += 1
            self._source.remember(self.features)

    def _vouch_for_cache(self, rows: Tensor | None = None) -> None:
        """S is that of the features, of which ``rows`` int64 [B] have just been written, or which it was made of."""
        if not torch.compiler.is_compiling():
            self._changes += rows is not None
            self._source.remember_rows(self.features, rows)
        self._cache_follows = True

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

    def mark_written_(self) -> None:
        """Say that ``features`` were written past autograd; S, where it is built, is computed afresh in place.

        Call it after ``torch.distributed`` operations, writes through ``.data``, numpy or DLPack, and before a
        compiled step or a CUDA graph runs on features that anything but the methods of this class has written.
        """
        self._count_change()
        if self.cache is not None or (self.lists is not None and self.lists.tables is not None):
            self.rebuild_cache_()

    def drop_cache_(self) -> None:
        """Free S, or its lists, until labels are next asked for. A captured CUDA graph that uses them is lost."""
        self.cache, self.block_bits, self._cache_follows = None, None, False
        if self.lists is not None:
            self.lists.drop_()

    def rebuild_cache_(self) -> None:
        """Compute S, or its lists, afresh from ``features`` where they are kept; drops the rounding of earlier updates.

        In place where they are built already: a captured CUDA graph goes on with the new values.
        """
        if self.lists is not None:
            self.lists.build_(self.features)
            self._notice()
            self._vouch_for_cache()
        if not self.keeps_cache:
            return
        n, features = self.num_instances, self.features
        if self.cache is None or self.block_bits is None or self.cache.device != features.device:
            self.drop_cache_()  # first: there is room for one
            with torch.inference_mode(False):  # it may be written outside of that
                self.cache = torch.empty(n, n, dtype=torch.float32, device=features.device)
                self.block_bits = torch.empty(n, block_bytes(n), dtype=torch.uint8, device=features.device)
        step = max(512, ENTRIES_AT_ONCE // n)
        for first in range(0, n, step):
            self.cache[first : first + step] = ops.memory_similarity(features[first : first + step], features)
        self.block_bits.copy_(ops.mark_cache_blocks(self.cache, self.block_floor).bits)
        self._notice()
        self._vouch_for_cache()

    def current_cache(self, rows: Tensor | None = None) -> Tensor | None:
        """S [n, n] of the features as they are now, or None where no cache is kept.

        ``rows`` int64 [B]: positions whose features are compared with those that S was made from (on the CPU).
        A traced call takes the cache that is there, or none: build it before, and call :meth:`mark_written_`.
        """
        if torch.compiler.is_compiling():
            return self.cache if self._cache_follows else None
        if not self.keeps_cache:
            return None
        self._notice(rows)
        if not self._cache_follows:
            self.rebuild_cache_()
        return self.cache

    def current_blocks(self) -> CacheBlocks | None:
        """The marked blocks of S as it is now (:func:`snnet_kernels.mark_cache_blocks`), or None where no cache is
        kept. A traced call takes those that are there."""
        if self.current_cache() is None or self.block_bits is None:
            return None
        return CacheBlocks(self.block_bits, self.block_floor)

    def current_lists(self, rows: Tensor | None = None) -> MemoryLists | None:
        """The lists of the features as they are now, or None where none are kept; ``rows`` as for
        :meth:`current_cache`. A traced call takes those that are there."""
        if self.lists is None:
            return None
        if torch.compiler.is_compiling():
            return self.lists if self.lists.tables is not None and self._cache_follows else None
        self._notice(rows)
        if self.lists.tables is None or not self._cache_follows:
            self.rebuild_cache_()
        return self.lists

    def _at_hand(self, index: Tensor) -> dict[str, Any]:
        """What :func:`snnet_kernels.mplp` of the rows ``index`` int64 [B] can use of this memory, by argument."""
        return {"cache": self.current_cache(index), "blocks": self.current_blocks()}

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
        (features,) = ops.checks.apart({"memory": self.features}, features)
        with torch.no_grad():
            self.features.copy_(features)
        if torch.compiler.is_compiling():
            self._count_change()
        else:
            _ = self.keeps_cache  # decided here, where the host may look at its memory
            self.mark_written_()

    def similarity(self, features: Tensor) -> Tensor:
        """s = f Mᵀ [B, n] of ``features`` [B, d] (Eq. 1); see :func:`snnet_kernels.memory_similarity`."""
        self._refuse_replication()
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
        self._refuse_replication()
        index = ops.checks.check_index("index", index, self.num_instances)
        lists = self.current_lists(index)
        if lists is not None and not strict:
            threshold, min_rank = ops.checks.check_prediction_options(threshold, min_rank)
            if query_rows is not None:
                query_rows = ops.checks.check_rows("query_rows", query_rows, len(index), self.num_instances)
            return lists.mplp(self.features, index, threshold, min_rank, query_rows)
        return ops.mplp(
            self.features,
            index,
            threshold,
            min_rank,
            query_rows=query_rows,
            strict=strict,
            **self._at_hand(index),
        )

    def nearest(
        self, index: Tensor, k: int = 1, *, query_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest other images; see :func:`snnet_kernels.nearest_neighbors`."""
        self._refuse_replication()
        index = ops.checks.check_index("index", index, self.num_instances)
        lists = self.current_lists(index)
        if lists is not None and query_rows is None:
            return lists.nearest(self.features, index, ops.checks.check_neighbors(k, self.num_instances))
        return ops.nearest_neighbors(
            self.features, index, k, cache=self.current_cache(index), query_rows=query_rows
        )

    def update_(
        self, index: Tensor, features: Tensor, momentum: float | Tensor, *, similarity: Tensor | None = None
    ) -> None:
        """Momentum update of M and of the cache; see :func:`snnet_kernels.update_memory_`."""
        self._refuse_replication()
        index = ops.checks.check_index("index", index, self.num_instances)
        known = self._changes
        lists, cache, blocks = self.current_lists(index), self.current_cache(index), self.current_blocks()
        if not torch.compiler.is_compiling() and self._changes != known:
            similarity = None  # of what the memory was before something else wrote it
        ops.update_memory_(
            self.features,
            index,
            features,
            momentum,
            cache=cache,
            similarity=similarity,
            blocks=blocks,
            lists=None if lists is None else lists.tables,
        )
        if cache is None and lists is None:
            self._count_change()
        else:
            self._vouch_for_cache(index)

    def _update_rows_(self, index: Tensor, features: Tensor, momentum: float | Tensor) -> None:
        """The same for M alone: S, where it is built, stays in its place and is computed afresh when next needed."""
        self._refuse_replication()
        ops.update_memory_(self.features, index, features, momentum)
        self._count_change()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExemplarMemory:
        if fn(self.features.new_empty(0)).device != self.features.device:
            self.drop_cache_()  # it is cheaper to build than to move
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        device = self.features.device
        super()._load_from_state_dict(*args, **kwargs)
        if self.features.device != device:
            self.drop_cache_()
        self.mark_written_()

    def extra_repr(self) -> str:
        kept = f"cache={self.cache_mode!r}" if self.lists is None else f"neighbors={self.lists.capacity}"
        return f"{self.num_instances}, {self.feature_dim}, {kept}"


class PseudoLabelMemory(FixedTypeModule):
    """The most recent main label of every image, P [n, n] as bits, with its transpose; starts as identity.

    A column P[:, i] (Eq. 4) is a contiguous row of the transpose. Takes 2 · n · label_bytes(n) bytes.

    The transpose follows P as S follows the exemplar memory (:class:`ExemplarMemory`): what writes ``row_bits`` past
    autograd is noticed on the CPU where it changed a row that a call names, and otherwise has to be said, by
    :meth:`mark_written_`.

    Buffers: ``row_bits`` and ``column_bits`` uint8 [n, label_bytes(n)] (only the first is saved).
    """

    row_bits: Tensor
    column_bits: Tensor

    def __init__(self, num_instances: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        num_instances = ops.checks.check_count("num_instances", num_instances)
        self.num_instances = num_instances
        shape = (num_instances, ops.label_bytes(num_instances))
        with torch.inference_mode(False):
            check_room(num_instances, 2 * shape[0] * shape[1], torch.empty(0, device=device).device)
            bits = torch.zeros(shape, dtype=torch.uint8, device=device)
            diagonal = torch.arange(num_instances, device=device)
            bit = torch.bitwise_left_shift(torch.ones_like(diagonal), diagonal % 8).to(torch.uint8)
            bits[diagonal, diagonal // 8] = bit
            self.register_buffer("row_bits", bits)
            self.register_buffer("column_bits", bits.clone(), persistent=False)
        self._source = Source()  # the rows that the transpose was made from
        self._vouch_for_columns()

    def write_(self, index: Tensor, labels: Tensor) -> None:
        """P[index] = labels (Eq. 3): ``index`` int64 [B], packed ``labels`` uint8 [B, label_bytes(n)].

        Of a repeated index the last row counts.
        """
        self._follow(index)
        ops.write_labels_(self.row_bits, self.column_bits, index, labels)
        self._vouch_for_columns(index)

    def rows(self, index: Tensor) -> Tensor:
        """P[index], packed, uint8 [B, label_bytes(n)]: the labels of images ``index`` [B] (Eq. 6), empty at -1."""
        self._refuse_replication()
        return ops.gather_labels(self.row_bits, index)

    def columns(self, index: Tensor) -> Tensor:
        """P[:, index]ᵀ, packed, uint8 [B, label_bytes(n)]: who has images ``index`` [B] as positive (Eq. 4)."""
        self._follow(index, lowest=-1)
        return ops.gather_labels(self.column_bits, index)

    def to_dense(self) -> Tensor:
        """P as bool [n, n], n² bytes."""
        return ops.unpack_labels(self.row_bits, self.num_instances)

    def mark_written_(self) -> None:
        """Say that ``row_bits`` were written past autograd, as :meth:`ExemplarMemory.mark_written_` does."""
        n, block, device = self.num_instances, 1024, self.row_bits.device
        if self.column_bits.device != device:
            with torch.inference_mode(False):
                self.column_bits = torch.zeros(self.row_bits.shape, dtype=torch.uint8, device=device)
        for start in range(0, n, block):  # a block of rows of P is a block of columns of its transpose
            part = ops.unpack_labels(self.row_bits[start : start + block], n)
            packed = ops.pack_labels(part.t())
            self.column_bits[:, start // 8 : start // 8 + packed.shape[1]] = packed
        self._vouch_for_columns()

    def _follow(self, index: Tensor, lowest: int = 0) -> None:
        """Before the transpose is read or written: make it afresh where P, or its rows ``index``, have changed."""
        self._refuse_replication()
        index = ops.checks.check_index("index", index, self.num_instances, lowest=lowest)
        if torch.compiler.is_compiling():
            return
        rows = index.clamp_min(0) if lowest < 0 and index.device.type == "cpu" else index
        if not self._source.holds(self.row_bits, rows):
            self.mark_written_()

    def _vouch_for_columns(self, rows: Tensor | None = None) -> None:
        """The transpose is that of P, of which ``rows`` int64 [B] (default: all) are new."""
        if not torch.compiler.is_compiling():
            self._source.remember_rows(self.row_bits, rows)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.mark_written_()

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
