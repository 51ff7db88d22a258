"""SNNetHead: one training iteration of SNNet on top of any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks as checks
from . import ops, reference
from .modules import ExemplarMemory, FixedTypeModule, MutualLabelLoss, PseudoLabelMemory


class _Forward(NamedTuple):
    """What one forward pass leaves for the update that follows it."""

    features: Tensor
    features_version: int
    memory_version: int
    similarity: Tensor | None


class SNNetHead(FixedTypeModule):
    """Exemplar memory M, similarity cache S, pseudo label memory P and the loss, as one module::

        head = SNNetHead(num_instances=n, feature_dim=d)
        head.initialize_(features)                   # [n, d], L2-normalised, of an extraction pass
        loss = head(features, index)                 # [B, d] live features, [B] dataset positions
        loss.backward(); optimizer.step()
        head.update_(index, features.detach())

    ``head.warmup = True`` trains on one-hot labels and leaves P alone. ``head.momentum`` is α of the memory
    update. In ``eval()`` the loss is computed and nothing is written, neither by ``forward`` nor by
    ``update_``.

    Args:
        num_instances: number of training images n.
        feature_dim: feature dimensions d.
        threshold, min_rank, strict: of the label prediction, see :func:`snnet_kernels.mplp`.
        weights: λ of the main, the symmetric and the neighbor label (Eq. 8); any may be 0.
        loss_kind, delta, hard_negative_ratio: see :func:`snnet_kernels.mutual_label_loss`.
        label_source: ``"memory"`` predicts labels from S[index], ``"feature"`` from the live s.
        cache: see :class:`ExemplarMemory`.
    """

    _momentum: Tensor

    def __init__(
        self,
        num_instances: int,
        feature_dim: int,
        *,
        threshold: float = 0.6,
        min_rank: int = 10,
        strict: bool = False,
        weights: Sequence[float] = (1.0, 0.8, 0.6),
        loss_kind: str = "mmcl",
        delta: float = 5.0,
        hard_negative_ratio: float = 0.01,
        label_source: str = "memory",
        cache: bool | str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        threshold, min_rank = checks.check_prediction_options(threshold, min_rank)
        if len(checks.check_weights(weights)) != 3:
            raise ValueError(
                f"weights must be 3 numbers (main, symmetric, neighbor label), got {len(weights)}"
            )
        if label_source not in ("memory", "feature"):
            raise ValueError(f"label_source must be 'memory' or 'feature', got {label_source!r}")
        self.threshold = threshold
        self.min_rank = min_rank
        self.strict = strict
        self.label_source = label_source
        self.memory = ExemplarMemory(num_instances, feature_dim, cache, block_floor=threshold, device=device)
        self.num_instances, self.feature_dim = self.memory.num_instances, self.memory.feature_dim
        self.pseudo_labels = PseudoLabelMemory(num_instances, device=device)
        self.loss = MutualLabelLoss(
            weights, kind=loss_kind, delta=delta, hard_negative_ratio=hard_negative_ratio
        )
        self.warmup = False
        self.register_buffer("_momentum", torch.zeros((), device=device))
        self._last_forward: _Forward | None = None
        self._label_sets: tuple[Tensor, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SNNetHead:
        self._last_forward = None  # its similarity stays where it was
        super()._apply(fn, recurse)
        return self

    @property
    def momentum(self) -> Tensor:
        """α of the memory update, a 0-d float32 tensor; assign a number in [0, 1]."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._momentum.copy_(checks.check_momentum(value, self._momentum.device))

    def initialize_(self, features: Tensor) -> None:
        """Fill M with the L2-normalised ``features`` [n, d] of all images; S is built when it is first needed."""
        self.memory.initialize_(features)

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """The loss [] of live, L2-normalised ``features`` [B, d] of the images ``index`` int64 [B].

        Predicts the main labels, inquires the symmetric and the neighbor labels from P as it was before,
        then, in training, writes the main labels to P (Eq. 1-8).
        """
        checks.check_features("features", features, self.feature_dim)
        index = checks.check_index("index", index, self.num_instances, features.shape[0])
        checks.check_same_device(memory=self.memory.features, features=features, index=index)
        similarity = self.memory.similarity(features.detach()) if self._uses_similarity() else None
        if self.warmup:
            label_sets: tuple[Tensor, ...] = (reference.identity_labels(index, self.num_instances),)
        else:
            label_sets = self._mine(index, similarity) if self.training else self._inquire(index, similarity)
        weights = (1.0,) if self.warmup else self.loss.weights
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

    def _mine(self, index: Tensor, similarity: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`_inquire` returns, with the main labels then written to P."""
        return ops.mine_labels_(
            self.memory.features,
            index,
            self.pseudo_labels.row_bits,
            self.pseudo_labels.column_bits,
            self.threshold,
            self.min_rank,
            cache=self.memory.current_cache(),
            query_rows=similarity if self.label_source == "feature" else None,
            blocks=self.memory.current_blocks(),
            strict=self.strict,
        )

    def _inquire(self, index: Tensor, similarity: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The main, symmetric and neighbor labels, packed."""
        query_rows = similarity if self.label_source == "feature" else None
        labels = self.memory.predict_labels(
            index, self.threshold, self.min_rank, query_rows=query_rows, strict=self.strict
        )
        neighbor = self.memory.nearest(index, query_rows=query_rows)[0].squeeze(1)
        # A single image has no neighbour (-1), and so an empty label.
        return labels, self.pseudo_labels.columns(index), self.pseudo_labels.rows(neighbor)

    @torch.no_grad()
    def update_(self, index: Tensor, features: Tensor) -> None:
        """Step 6: blend ``features`` [B, d] into M[index] with ``momentum``, and bring S up to date.

        The similarity of the last forward pass is used again if these are its features and M has not
        been written since; otherwise it is computed. In the warm-up, which reads no labels from S, S is dropped,
        to be built when it is next needed. Does nothing in ``eval()``.
        """
        if not self.training:
            return
        if self.warmup:
            self.memory.drop_cache_()
            ops.update_memory_(self.memory.features, index, features, self._momentum)
        else:
            self.memory.update_(index, features, self._momentum, similarity=self._similarity_of(features))
        self._last_forward = None

    def _uses_similarity(self) -> bool:
        """Whether s is worth its B x n floats: the cache update reads it again, or labels are made of it.

        Without a cache the loss streams over the memory and s would be read once.
        """
        return self.memory.keeps_cache or self.label_source == "feature"

    def _remember(self, features: Tensor, similarity: Tensor | None) -> None:
        if features.is_inference():  # such tensors do not count their writes
            self._last_forward = None
        else:
            self._last_forward = _Forward(features, features._version, self.memory.version, similarity)

    def _similarity_of(self, features: Tensor) -> Tensor | None:
        last = self._last_forward
        if torch.compiler.is_compiling() or last is None or features.is_inference():
            return None
        same = (
            features.data_ptr() == last.features.data_ptr()
            and features.shape == last.features.shape
            and features.stride() == last.features.stride()
            and features.dtype == last.features.dtype
            and features._version == last.features_version
            and self.memory.version == last.memory_version
        )
        return last.similarity if same else None

    def label_statistics(self) -> dict[str, Tensor]:
        """Means over the last batch, 0-d tensors without a synchronisation: ``positives`` per row of the main
        label, and its agreement (intersection over union) with the symmetric and the neighbor label,
        ``agreement_symmetric`` and ``agreement_neighbor`` (NaN in the warm-up, which has only main labels)."""
        if not self._label_sets:
            raise RuntimeError("label_statistics() needs a forward pass first")
        main, *others = self._label_sets
        nan = torch.full((), torch.nan, device=main.device)
        agreement = [_count(main & y) / _count(main | y).clamp_min(1) for y in others]
        means = [ratio.mean() for ratio in agreement] or [nan, nan]
        return {
            "positives": _count(main).mean(),
            "agreement_symmetric": means[0],
            "agreement_neighbor": means[1],
        }


def _count(labels: Tensor) -> Tensor:
    """Set bits of each packed row [B, L] as float32 [B]."""
    # Bits are counted in parallel inside each byte: pairs, then nibbles, then the byte.
    pairs = labels - ((labels >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(1, dtype=torch.float32)
