"""Hybrid memories of public code, with their signatures and results: SpCL's of images and clusters, and DCMIP's of
two proxies per cluster.

Differences: nothing is moved to a GPU implicitly, and a memory row that would not be finite is not written. DCMIP's
third mode (``CMhard``), which draws its proxies at random, is not included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss, normalize

from .. import checks, ops
from .layer import MemoryLayer, SampleMemory, check_inputs, check_settings

EPSILON = 1e-6  # in both places of SpCL's softmax
MARGIN = 0.2  # only the part of the loss of DCMIP's first proxies above it counts


class HybridMemory(SampleMemory):
    """SpCL's memory of images ``features`` [num_samples, num_features] and their classes ``labels`` int64
    [num_samples], zeros until they are assigned.

    The similarity to a class is the mean similarity to its images. The loss is the cross entropy of these means divided
    by ``temp``. In the backward pass each image's row becomes normalize(momentum · row + (1 − momentum) · input).
    """

    labels: Tensor

    def __init__(
        self, num_features: int, num_samples: int, temp: float = 0.05, momentum: float = 0.2
    ) -> None:
        super().__init__(num_features, num_samples, temp, momentum)
        self.register_buffer("labels", torch.zeros(self.num_samples, dtype=torch.int64))

    def forward(self, inputs: Tensor, indexes: Tensor) -> Tensor:
        """The loss [] of ``inputs`` [B, num_features], rows of length 1, for the images ``indexes`` int64 [B]."""
        self._refuse_replication()
        _, temp = check_settings(self.momentum, self.temp)
        inputs = check_inputs(inputs, self.features)
        indexes = checks.check_index("indexes", indexes, len(self.features), len(inputs))

        def learn(memory: Tensor, index: Tensor, inputs: Tensor, _: Tensor | None) -> None:
            ops.update_memory_(memory, index, inputs, self.momentum)

        similarity = MemoryLayer.apply(inputs, indexes, self.features, learn) / temp
        labels = checks.check_index("labels", self.labels, 2**31, len(self.features))
        classes = int(labels.max()) + 1 if len(labels) else 0
        images = labels.bincount(minlength=classes)
        means = similarity.new_zeros(len(inputs), classes).index_add(1, labels, similarity)
        weights = torch.exp(means / images.clamp_min(1)) * (images > 0)
        shares = weights / (weights.sum(1, keepdim=True) + EPSILON)
        return nll_loss(torch.log(shares + EPSILON), labels[indexes])


class ClusterMemory(SampleMemory):
    """DCMIP's memory of two proxies of each cluster, ``features`` [2 · num_samples, num_features]: mode ``CMhybrid``.

    Cluster c has the proxies c and num_samples + c. In the backward pass the first becomes normalize(momentum · proxy +
    (1 − momentum) · input) for each input of the cluster, one after the other. With ``use_hard`` it is updated once, by
    the least similar input (in the original a commented-out line, for Market-1501). The second is updated by the mean
    of these inputs. Let CE₁ and CE₂ be the cross entropies over the first and the second proxies, of similarities
    divided by ``temp``. The loss is CE₂ / 2 + max(CE₁ − 0.2, 0) / 2.

    ``hard_weight``, ``smooth`` and ``num_instances`` change nothing, as in the original's mode.

    Raises:
        ValueError: any other ``mode``. For ``CM`` use the ``ClusterMemory`` of :mod:`.cluster_contrast`.
    """

    def __init__(
        self,
        num_features: int,
        num_samples: int,
        temp: float = 0.05,
        momentum: float = 0.2,
        mode: str = "CMhybrid",
        hard_weight: float = 0.5,
        smooth: float = 0,
        num_instances: int = 16,
        *,
        use_hard: bool = False,
    ) -> None:
        super().__init__(num_features, num_samples, temp, momentum, rows_of_each=2)
        if mode != "CMhybrid":
            raise ValueError(
                f"mode must be 'CMhybrid', got {mode!r}: CM is the ClusterMemory of compat.cluster_contrast, and "
                "CMhard, which draws its proxies at random, is not here"
            )
        self.use_hard = use_hard

    def forward(self, inputs: Tensor, targets: Tensor, model_name: str = "encoder") -> Tensor:
        """The loss [] of ``inputs`` [B, num_features], which are normalised here, and ``targets`` int64 [B].

        ``model_name`` is not read: in the original it counts in the second stage alone.
        """
        self._refuse_replication()
        _, temp = check_settings(self.momentum, self.temp)
        inputs = normalize(check_inputs(inputs, self.features), dim=1)
        targets = checks.check_index("targets", targets, len(self.features) // 2, len(inputs))
        outputs = MemoryLayer.apply(inputs, targets, self.features, self._learn) / temp
        first, second = outputs.chunk(2, dim=1)
        return 0.5 * (cross_entropy(second, targets) + torch.relu(cross_entropy(first, targets) - MARGIN))

    def _learn(self, memory: Tensor, targets: Tensor, inputs: Tensor, _: Tensor | None) -> None:
        one_by_one, of_means = memory.chunk(2)
        update = ops.update_memory_by_hardest_ if self.use_hard else ops.update_memory_
        update(one_by_one, targets, inputs, self.momentum)
        sums = torch.zeros_like(of_means).index_add(0, targets, inputs.float())
        means = sums / targets.bincount(minlength=len(sums)).clamp_min(1)[:, None]
        # Entries of one cluster have the same mean: the update by one of them counts once.
        ops.update_memory_by_hardest_(of_means, targets, means[targets], self.momentum)
