"""The exemplar memory M, and the neighbour lists that follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import checks, ops
from .derived import Source
from .memory_lists import MemoryLists
from .memory_module import UnaveragedModule, refuse_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self

FLOOR = 0.3  # of the lists: with the usual threshold, 0.6, nearly all similarities that are read are above it


class ExemplarMemory(UnaveragedModule):
    """One feature of every image, M [n, d], updated with momentum, and its neighbour lists: the part of S = M Mᵀ that
    labels read.

    Lists are kept up to date with M. Assignment, in-place operations and ``load_state_dict`` are detected. Writes that
    autograd does not see (``torch.distributed``, ``.data``, numpy, DLPack) are detected only on the CPU, in eager mode,
    and only in rows of a call's ``index``. After any other such write call :meth:`mark_written_`.

    Args:
        num_instances: number of images n.
        feature_dim: feature dimensions d.
        neighbors: capacity K of a list, 12 bytes per entry (8 on a GPU). Labels are read from the lists. If a row of S
            has more candidates than its list holds, the row is computed, which takes longer. The labels are the same
            with any K. 256 are ample if a row has some tens of candidates. 0: no lists, rows are computed as needed.
        floor: pairs with a larger similarity are listed. Choose it below the threshold of the labels. Labels do not
            depend on it, but a lower floor fills the lists with pairs that are rarely read.
        process_group: shard the rows over these processes, see
            :class:`.distributed.memory.ShardedExemplarMemory`. None: no sharding; ``dist.group.WORLD`` is None before
            ``init_process_group``.

    The buffer ``features`` is float32 [n, d]; ``own_rows`` is range(n). ``lists`` is a :class:`.MemoryLists`, or None
    with ``neighbors=0``. Lists are built when they are first needed, and saved in ``state_dict()`` unless M has changed
    since, or a compiled step has updated them. Once built, their tensors keep their storage until :meth:`drop_lists_`
    or a move to another device, so that a captured CUDA graph can use them.
    """

    features: Tensor

    def __new__(cls, *args: Any, process_group: ProcessGroup | None = None, **kwargs: Any) -> Self:
        if process_group is None or cls is not ExemplarMemory:
            return super().__new__(cls)
        from .distributed.memory import ShardedExemplarMemory  # its base class is this one

        return super().__new__(ShardedExemplarMemory)  # type: ignore[return-value]

    def __init__(
        self,
        num_instances: int,
        feature_dim: int,
        *,
        neighbors: int = 256,
        floor: float = FLOOR,
        device: torch.device | str | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.num_instances = checks.check_count("num_instances", num_instances)
        self.feature_dim = checks.check_count("feature_dim", feature_dim)
        neighbors = checks.check_count("neighbors", neighbors, lowest=0)
        floor = checks.check_finite("floor", floor)
        self.own_rows = self._join(process_group)
        with torch.inference_mode(False):
            features = torch.zeros(len(self.own_rows), self.feature_dim, dtype=torch.float32, device=device)
        self.register_buffer("features", features)
        self.lists = self._empty_lists(neighbors, floor)
        self._source = Source()  # the features as last seen
        self._changes = 0  # of the features, as far as they were detected
        self._lists_follow = False  # whether lists are those of the features as last seen
        self._traced = (
            False  # whether a traced call updated both last: what else wrote the features is not known then
        )

    def _join(self, process_group: ProcessGroup | None) -> range:
        """The rows that this process holds."""
        refuse_group(self, process_group, "ShardedExemplarMemory")
        return range(self.num_instances)

    def _empty_lists(self, neighbors: int, floor: float) -> MemoryLists | None:
        return MemoryLists(neighbors, floor) if neighbors else None

    @property
    def version(self) -> int:
        """The number of known changes of ``features``: writes by methods of this class, detected writes (another
        tensor, in-place operations, changed rows of a call's ``index``), and calls of :meth:`mark_written_`.

        A different number means that the features may have changed. The same number means the same content, unless
        something wrote them unseen by autograd and :meth:`mark_written_` was not called.
        """
        self._notice()
        return self._changes

    def _notice(self, rows: Tensor | None = None) -> None:
        """Count a change if the features, or their ``rows`` int64 [B], differ from those last seen."""
        if not torch.compiler.is_compiling() and not self._source.holds(self.features, rows):
            self._count_change(lists_follow=self._lists_follow and self._traced)

    def _count_change(self, *, lists_follow: bool = False) -> None:
        """The features have changed: lists that do not follow are rebuilt when they are next needed."""
        self._lists_follow = lists_follow
        if not torch.compiler.is_compiling():
            self._changes += 1
            self._source.remember(self.features)

    def _vouch_for_lists(self, rows: Tensor | None = None) -> None:
        """Lists are current: ``rows`` int64 [B] of the features were just written, or, without them, all were read."""
        self._lists_follow, self._traced = True, torch.compiler.is_compiling()
        if not self._traced:
            self._changes += rows is not None
            self._source.remember_rows(self.features, rows)

    def mark_written_(self) -> None:
        """Declare that ``features`` were written unseen by autograd. Lists that are built are rebuilt in place.

        Call it after ``torch.distributed`` operations and after writes through ``.data``, numpy or DLPack. Call it also
        before a compiled step or a CUDA graph, if anything but the methods of this class has written the features.
        """
        self._count_change()
        if self.lists is not None and self.lists.tables is not None:
            self.build_lists_()

    def drop_lists_(self) -> None:
        """Free the lists. They are rebuilt when next needed. A captured CUDA graph that uses them becomes invalid."""
        self._lists_follow = False
        if self.lists is not None:
            self.lists.drop_()

    def build_lists_(self) -> None:
        """Build the lists from ``features``, with n²d/2 multiply-adds. Does nothing with ``neighbors=0``.

        Lists that exist are rebuilt in place: a captured CUDA graph continues with the new values.
        """
        if self.lists is not None:
            self._lists_follow = False  # until all tables are new: an interrupt may come between two of them
            self.lists.build_(self.features)
            self._notice()
            self._vouch_for_lists()

    def renew_lists_(self) -> None:
        """Rebuild the lists if more than n/2 rows of S were computed since they were built: a build costs as much.

        The floors of full rows rise, and only a build lowers them. Lists that are built, but not those of M, are
        rebuilt too: compiled steps take none else. Call it once per epoch. On a GPU the host waits.
        """
        if self.lists is None or self.lists.tables is None:
            return
        self._notice()
        if not self._lists_follow or self.lists.are_worn():
            self.build_lists_()

    def current_lists(self, rows: Tensor | None = None) -> MemoryLists | None:
        """The lists of the current features, or None with ``neighbors=0``.

        On the CPU, the features at ``rows`` int64 [B] are compared with those that the lists were made from. A traced
        call takes the lists that exist, or none: build them before, and call :meth:`mark_written_`.
        """
        if self.lists is None:
            return None
        if not torch.compiler.is_compiling():
            self._notice(rows)
            if self._lists_at_hand() is None:
                self.build_lists_()
                return self.lists  # whatever another thread builds meanwhile
        return self._lists_at_hand()

    def _lists_at_hand(self) -> MemoryLists | None:
        """Lists that are built and follow the features as last seen.

        Those that a traced call has updated are at hand for traced calls alone: an eager one cannot tell whether
        anything else has written the features.
        """
        built = self.lists is not None and self.lists.columns is not None
        follow = self._lists_follow and (torch.compiler.is_compiling() or not self._traced)
        return self.lists if built and follow else None

    def initialize_(self, features: Tensor) -> None:
        """Fill the memory with the L2-normalised ``features`` [n, d] of an extraction pass.

        Lists that are built are rebuilt in place. Others are built when labels are first needed, or by
        :meth:`build_lists_`: call it before a compiled step, which takes the lists that exist. Raises ValueError if a
        row is not finite, or neither of length 1 nor zero. (On a GPU the host waits for this check.)
        """
        features = checks.check_features("features", features, self.feature_dim)
        if len(features) != self.num_instances:
            expected = [self.num_instances, self.feature_dim]
            raise ValueError(f"features must have shape {expected}, got {list(features.shape)}")
        checks.check_lengths("features", features)
        (features,) = checks.apart([self.features], features)
        with torch.no_grad():
            self.features.copy_(features)
        if torch.compiler.is_compiling():
            self._count_change()
        else:
            self.mark_written_()

    def similarity(self, features: Tensor) -> Tensor:
        """s = f Mᵀ [B, n] of ``features`` [B, d] (Eq. 1); see :func:`snnet_kernels.memory_similarity`."""
        self._refuse_replication()
        return ops.memory_similarity(features, self.features)

    def predict_labels(
        self, index: Tensor, threshold: float = 0.6, min_rank: int = 10, *, query_rows: Tensor | None = None
    ) -> Tensor:
        """Packed pseudo labels uint8 [B, label_bytes(n)] of ``index`` [B]; see :func:`snnet_kernels.mplp`."""
        index, query_rows = self._checked(index, query_rows)
        return self._predict(self.current_lists(index), index, threshold, min_rank, query_rows)

    def _checked(self, index: Tensor, query_rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Checked positions, and their similarities where they are given."""
        self._refuse_replication()
        index = checks.check_index("index", index, self.num_instances)
        if query_rows is not None:
            query_rows = checks.check_rows("query_rows", query_rows, len(index), self.num_instances)
        checks.check_same_device(memory=self.features, index=index, query_rows=query_rows)
        return index, query_rows

    def _predict(
        self,
        lists: MemoryLists | None,
        index: Tensor,
        threshold: float,
        min_rank: int,
        query_rows: Tensor | None,
    ) -> Tensor:
        """The same of checked arguments, from ``lists`` that are known to be current."""
        if lists is None:
            return ops.mplp(self.features, index, threshold, min_rank, query_rows=query_rows)
        threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
        return lists.mplp(self.features, index, threshold, min_rank, query_rows)

    def nearest(
        self, index: Tensor, k: int = 1, *, query_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest other images; see :func:`snnet_kernels.nearest_neighbors`."""
        index, query_rows = self._checked(index, query_rows)
        return self._nearest(self.current_lists(index), index, k, query_rows)

    def _nearest(
        self, lists: MemoryLists | None, index: Tensor, k: int, query_rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same of checked arguments, from ``lists`` that are known to be current."""
        if lists is None or query_rows is not None:
            return ops.nearest_neighbors(self.features, index, k, query_rows=query_rows)
        return lists.nearest(self.features, index, checks.check_neighbors(k, self.num_instances))

    def update_(
        self, index: Tensor, features: Tensor, momentum: float | Tensor, *, similarity: Tensor | None = None
    ) -> None:
        """Momentum update of M and of its lists; see :func:`snnet_kernels.update_memory_`.

        Lists that are not built, or not those of the features, are left until labels are next needed.
        """
        index, _ = self._checked(index, None)
        known = self._changes
        self._notice(index)
        if not torch.compiler.is_compiling() and self._changes != known:
            similarity = None  # it belongs to the memory before something else wrote it
        lists = self._lists_at_hand()
        tables = None if lists is None else lists.tables
        ops.update_memory_(self.features, index, features, momentum, lists=tables, similarity=similarity)
        if lists is None:
            self._count_change()
        else:
            self._vouch_for_lists(index)

    def _update_rows_(self, index: Tensor, features: Tensor, momentum: float | Tensor) -> None:
        """The same for M alone: lists are not updated, but rebuilt when they are next needed."""
        self._refuse_replication()
        ops.update_memory_(self.features, index, features, momentum)
        self._count_change()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExemplarMemory:
        if fn(self.features.new_empty(0)).device != self.features.device:
            self.drop_lists_()  # they are cheaper to build than to move
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        lists = self._lists_at_hand()
        if lists is None:
            return
        if self._source.holds_all(self.features):
            lists.save_(destination, f"{prefix}lists.", self.features)
        else:
            self._count_change()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Lists are optional: a state may have none, and this memory may keep none.
        own, kind = f"{prefix}lists.", MemoryLists if self.lists is None else type(self.lists)
        names = [own + name for name in kind.saved_names()]
        found = {name: state_dict.pop(name) for name in names if name in state_dict}
        device = self.features.device
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.features.device != device:
            self.drop_lists_()
        # A state may have other features, or none; writes to inference tensors are not counted.
        changed = self.features.is_inference() or not self._source.holds_all(self.features)
        if changed:
            self._count_change()
        if self.lists is not None:
            if self.lists.load_(found, own, self.features):
                self._vouch_for_lists()
            elif changed:
                self._rebuild_loaded_()

    def _rebuild_loaded_(self) -> None:
        """Other features were loaded, without their lists: those that are built are rebuilt."""
        self.mark_written_()

    def extra_repr(self) -> str:
        kept = self.lists.capacity if self.lists is not None else 0
        return f"{self.num_instances}, {self.feature_dim}, neighbors={kept}"
