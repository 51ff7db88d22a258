"""SNNetHead: one training iteration of SNNet on top of any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import checks, ops
from .derived import Source
from .exemplar_memory import ExemplarMemory
from .label_loss import MutualLabelLoss
from .label_memory import PseudoLabelMemory
from .layout import identity_labels
from .memory_module import UnaveragedModule, refuse_group
from .tracing import has_values

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self

MOST_SIMILARITY = 2**30  # bytes of s that may be kept from the forward pass to the update
BELOW_THRESHOLD = 0.3  # where lists start: ranks are counted down to S[candidate, anchor]


class _Forward(NamedTuple):
    """What a forward pass keeps for the next update."""

    features: Source
    memory_version: int
    similarity: Tensor


class SNNetHead(UnaveragedModule):
    """Exemplar memory M with its neighbour lists, pseudo label memory P and the loss, as one module::

        head = SNNetHead(num_instances=n, feature_dim=d)
        head.initialize_(features)                   # [n, d], L2-normalised, from an extraction pass
        loss = head(features, index)                 # [B, d] live features, [B] dataset positions
        loss.backward(); optimizer.step()
        head.update_(index, features.detach())

    ``head.warmup = True`` trains on one-hot labels and does not write P. ``head.momentum`` is α of the memory update.
    In ``eval()`` the loss is computed, but neither ``forward`` nor ``update_`` writes anything.

    Neighbour lists and the transpose of P are kept up to date. Call :meth:`mark_written_` after a write that autograd
    does not see. Wrap only the network in ``DistributedDataParallel``: a head inside of it raises RuntimeError.

    A row of features that is not finite makes the loss NaN. It changes neither M nor P.

    Args:
        num_instances: number of training images n.
        feature_dim: feature dimensions d.
        threshold, min_rank: of the label prediction, see :func:`snnet_kernels.mplp`.
        weights: λ of the main, the symmetric and the neighbour label (Eq. 8); any of them may be 0, but not all.
        loss_kind, delta, hard_negative_ratio: see :func:`snnet_kernels.mutual_label_loss`.
        label_source: ``"memory"`` predicts labels from the rows S[index], ``"feature"`` from the live s.
        neighbors: places per neighbour list, see :class:`ExemplarMemory`; 0: no lists.
        label_storage: see :class:`PseudoLabelMemory`.
        process_group: shard memories and work over these processes, see :class:`.distributed.head.ShardedHead`.
            None: no sharding. Call ``init_process_group`` first: before it ``dist.group.WORLD`` is None too.
    """

    _momentum: Tensor
    _last_forward: _Forward | None

    def __new__(cls, *args: Any, process_group: ProcessGroup | None = None, **kwargs: Any) -> Self:
        if process_group is None or cls is not SNNetHead:
            return super().__new__(cls)
        from .distributed.head import ShardedHead  # its base class is this one

        return super().__new__(ShardedHead)  # type: ignore[return-value]

    def __init__(
        self,
        num_instances: int,
        feature_dim: int,
        *,
        threshold: float = 0.6,
        min_rank: int = 10,
        weights: Sequence[float] = (1.0, 0.8, 0.6),
        loss_kind: str = "mmcl",
        delta: float = 5.0,
        hard_negative_ratio: float = 0.01,
        label_source: str = "memory",
        neighbors: int = 256,
        label_storage: str = "auto",
        device: torch.device | str | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self._check_group(process_group)
        threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
        check_three_weights(weights)
        if label_source not in ("memory", "feature"):
            raise ValueError(f"label_source must be 'memory' or 'feature', got {label_source!r}")
        self.threshold = threshold
        self.min_rank = min_rank
        self.label_source = label_source
        self.memory = ExemplarMemory(
            num_instances,
            feature_dim,
            neighbors=neighbors,
            floor=threshold - BELOW_THRESHOLD,
            device=device,
            process_group=process_group,
        )
        self.num_instances, self.feature_dim = self.memory.num_instances, self.memory.feature_dim
        self.pseudo_labels = PseudoLabelMemory(
            num_instances, storage=label_storage, device=device, process_group=process_group
        )
        self.loss = MutualLabelLoss(
            weights, kind=loss_kind, delta=delta, hard_negative_ratio=hard_negative_ratio
        )
        self.warmup = False
        with torch.inference_mode(False):
            momentum = torch.zeros((), dtype=torch.float32, device=device)
        self.register_buffer("_momentum", momentum)
        self._last_forward = None
        self._label_sets: tuple[Tensor, ...] = ()
        self._products: Tensor | None = None  # rows of S that the last forward pass computed
        self._saw_lengths = False

    def _check_group(self, process_group: ProcessGroup | None) -> None:
        refuse_group(self, process_group, "ShardedHead")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SNNetHead:
        self._last_forward = None  # its tensors are not moved
        super()._apply(fn, recurse)
        return self

    @property
    def momentum(self) -> Tensor:
        """A copy of α of the memory update, a 0-d float32 tensor; assign a number in [0, 1]."""
        return self._momentum.clone()

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._momentum.copy_(checks.check_momentum(value, self._momentum.device))

    def initialize_(self, features: Tensor) -> None:
        """Fill M with the L2-normalised ``features`` [n, d] of all images.

        Neighbour lists that are built are rebuilt in place; others are built when first needed.
        """
        self.memory.initialize_(features)

    def mark_written_(self) -> None:
        """Declare that M or P were written unseen by autograd: what is derived from them is rebuilt, in place.

        See :meth:`ExemplarMemory.mark_written_`.
        """
        self._last_forward = None
        self.memory.mark_written_()
        self.pseudo_labels.mark_written_()

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """The loss [] of live, L2-normalised ``features`` [B, d] of the images ``index`` int64 [B].

        Predicts the main labels, and reads the symmetric and the neighbour labels from P. In training it then writes
        the main labels to P (Eq. 1-8). On the CPU batches are checked up to the first with a row whose length is finite
        and not zero: ValueError if the length of such a row is not 1.
        """
        index = self._checked(features, index)
        weights = [1.0] if self.warmup else check_three_weights(self.loss.weights)
        similarity = self.memory.similarity(features.detach()) if self._uses_similarity(len(index)) else None
        if self.warmup:
            label_sets: tuple[Tensor, ...] = (identity_labels(index, self.num_instances),)
            self._products = None
        else:
            label_sets = self._label_sets_of(index, similarity)
            if self.training and self.label_source == "feature":
                old = self.pseudo_labels.rows(index)
                self.pseudo_labels.write_(*labels_to_write(features.detach(), index, label_sets[0], old))
            elif self.training:
                self.pseudo_labels.write_(index, label_sets[0])
        loss = ops.fused_mutual_label_loss(
            features,
            self.memory.features,
            label_sets,
            weights,
            similarity=similarity,
            **self.loss.options(),
        )
        self._label_sets = label_sets
        if self.training and not torch.compiler.is_compiling():
            self._remember(features.detach(), similarity)
        return loss

    def _checked(self, features: Tensor, index: Tensor) -> Tensor:
        """The positions of a batch that is fit to be given to the head."""
        self._refuse_replication()
        checks.check_features("features", features, self.feature_dim)
        index = checks.check_index("index", index, self.num_instances, features.shape[0])
        checks.check_same_device(memory=self.memory.features, features=features, index=index)
        checks.check_no_transform("features", features)
        self._check_first_lengths(features)
        return index

    def _check_first_lengths(self, features: Tensor) -> None:
        """Check only the first batch that has lengths, and only on the CPU: a missing normalisation shows in each."""
        if torch.compiler.is_compiling() or self._saw_lengths:
            return
        if features.device.type == "cpu" and has_values(features):
            lengths = checks.check_lengths("features", features, finite=False)
            self._saw_lengths = bool((lengths.isfinite() & (lengths != 0)).any())

    def _label_sets_of(self, index: Tensor, similarity: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The main, symmetric and neighbor labels, packed."""
        query_rows = similarity if self.label_source == "feature" else None
        lists = self.memory.current_lists(index)
        before = None if lists is None else lists.products.clone()
        labels = self.memory._predict(lists, index, self.threshold, self.min_rank, query_rows)
        neighbor = self.memory._nearest(lists, index, 1, query_rows)[0].squeeze(1)
        if lists is not None and query_rows is not None:
            lists.asked.add_(len(index))  # s told the neighbours: a step counts as 2 B with either source
        self._products = None if lists is None or before is None else lists.products - before
        # A single image has no neighbour (-1), and so an empty label.
        return labels, self.pseudo_labels.columns(index), self.pseudo_labels.rows(neighbor)

    @torch.no_grad()
    def update_(self, index: Tensor, features: Tensor) -> None:
        """Update M[index] and the lists with ``features`` [B, d] and ``momentum`` (step 6 of docs/method.md).

        The similarity of the last forward pass is reused if these are its features and M has not been written since;
        otherwise it is computed. The warm-up predicts no labels, so lists are not updated there, but rebuilt when they
        are next needed. Does nothing in ``eval()``.
        """
        if not self.training:
            return
        if self.warmup:
            self.memory._update_rows_(index, features, self._momentum)
        else:
            self.memory.update_(index, features, self._momentum, similarity=self._similarity_of(features))
        self._last_forward = None

    def _uses_similarity(self, batch_size: int) -> bool:
        """Whether to keep s [B, n]: the update of lists reads it again, and so do labels from features.

        Otherwise, or if s would be large, the loss computes s in parts, or streams over the memory on a GPU.
        """
        if self.label_source == "feature":
            return True
        return self.memory.lists is not None and 4 * batch_size * self.num_instances <= MOST_SIMILARITY

    def _remember(self, features: Tensor, similarity: Tensor | None) -> None:
        self._last_forward = None
        if similarity is not None and not features.is_inference():  # such tensors do not count their writes
            source = Source()
            source.remember_rows(features)
            self._last_forward = _Forward(source, self.memory.version, similarity)

    def _similarity_of(self, features: Tensor) -> Tensor | None:
        """The similarity of the last forward pass, if these are its features and M has not changed since."""
        last = self._last_forward
        if torch.compiler.is_compiling() or last is None or features.is_inference():
            return None
        same = self.memory.version == last.memory_version and last.features.holds_all(features)
        return last.similarity if same else None

    def label_statistics(self) -> dict[str, Tensor]:
        """Means over the last batch, as 0-d tensors without a host synchronisation.

        ``positives`` is the mean size of the main labels. ``agreement_symmetric`` and ``agreement_neighbor`` are
        the intersection over union of the main label with the symmetric and the neighbour label (NaN in the warm-up,
        which has only main labels). With neighbour lists there is also ``products``: the number of rows of S that were
        computed because their lists are too short.
        """
        if not self._label_sets:
            raise RuntimeError("label_statistics() needs a forward pass first")
        main, *others = self._label_sets
        positives = [_count(labels) for labels in self._label_sets]
        return statistics(positives, [_count(main & labels) for labels in others], self._products)


def check_three_weights(weights: Sequence[float]) -> list[float]:
    """λ of the three label sets of a head."""
    numbers = checks.check_weights(weights)
    if len(numbers) != 3:
        raise ValueError(f"weights must be 3 numbers (main, symmetric, neighbor label), got {len(numbers)}")
    return numbers


def labels_to_write(features: Tensor, index: Tensor, labels: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """The index [B] and the rows of P to write of ``labels`` [B, L] that ``features`` [B, d] told.

    Features that are not finite tell nothing: their images keep the ``old`` rows [B, L], which come first, so that
    another entry of the same image counts.
    """
    finite = features.isfinite().all(1)
    order = finite.to(torch.uint8).argsort(stable=True)
    return index[order], torch.where(finite[:, None], labels, old)[order]


def statistics(
    positives: Sequence[Tensor], common: Sequence[Tensor], products: Tensor | None
) -> dict[str, Tensor]:
    """What :meth:`SNNetHead.label_statistics` tells of a batch.

    ``positives`` [B] of each label set, the main one first, and how many that one has in ``common`` [B] with each of
    the others.
    """
    main, *others = (count.float() for count in positives)
    agreement = []
    for count, both in zip(others, common, strict=True):
        shared = both.float()
        agreement.append((shared / (main + count - shared).clamp_min(1)).mean())
    symmetric, neighbor = agreement or [main.new_full((), torch.nan)] * 2
    found = {
        "positives": main.mean(),
        "agreement_symmetric": symmetric,
        "agreement_neighbor": neighbor,
    }
    return found if products is None else found | {"products": products.float()}


def _count(labels: Tensor) -> Tensor:
    """Set bits of each packed row [B, L] as float32 [B]."""
    # Bits are counted in parallel inside each byte: pairs, then nibbles, then the byte.
    pairs = labels - ((labels >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(1, dtype=torch.float32)
