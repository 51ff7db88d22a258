"""The same classes without fused operations, one sample at a time: what a trainer has before it changes its import."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels.reference import loop


class MPLP:
    """Label prediction with a product, full sorts and a decision of the host for every sample."""

    def __init__(self, t: float = 0.6) -> None:
        self.t = t

    def predict(self, memory: Tensor, targets: Tensor) -> Tensor:
        labels = torch.zeros(len(targets), len(memory), device=memory.device)
        for row, target in zip(labels, targets.tolist(), strict=True):
            similarity, order = (memory @ memory[target]).sort(descending=True, stable=True)
            candidates = order[similarity > self.t]
            rank = max(len(candidates), 10)
            rankings = (memory[candidates] @ memory.t()).sort(dim=1, descending=True, stable=True).indices
            positives = len(candidates)
            for position, ranking in enumerate(rankings):
                if order[0] not in ranking[: rank + 1]:
                    positives = max(position, 2)
                    break
            row[candidates[:positives]] = 1
            row[target] = 1
        return labels


class MMCL(nn.Module):
    """The loss of each sample over its positives and its hardest negatives, which a sort finds."""

    def __init__(self, delta: float = 5.0, r: float = 0.01) -> None:
        super().__init__()
        self.delta = delta
        self.r = r

    def forward(self, inputs: Tensor, targets: Tensor, is_vec: bool = False) -> Tensor:
        losses = []
        for logits, target in zip(inputs, targets, strict=True):
            positive = target > 0 if is_vec else torch.arange(len(logits), device=inputs.device) == target
            negatives = logits[~positive].sort(descending=True).values
            hard = negatives[: max(1, int(self.r * len(negatives)))]
            losses.append(self.delta * (1 - logits[positive]).square().mean() + (1 + hard).square().mean())
        return torch.stack(losses).mean()


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, targets: Tensor, memory: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        ctx.memory, ctx.alpha = memory, alpha
        return inputs @ memory.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, targets = ctx.saved_tensors
        gradient = grad @ ctx.memory
        for feature, target in zip(inputs, targets.tolist(), strict=True):
            row = ctx.alpha * ctx.memory[target] + (1 - ctx.alpha) * feature
            ctx.memory[target] = row / row.norm()
        return gradient, None, None, None


class Memory(nn.Module):
    """Exemplar memory, updated row by row during backward."""

    def __init__(self, num_features: int, num_classes: int, alpha: float = 0.01) -> None:
        super().__init__()
        self.alpha = alpha
        self.mem = nn.Parameter(torch.zeros(num_classes, num_features), requires_grad=False)

    def forward(self, inputs: Tensor, targets: Tensor, epoch: float | None = None) -> Tensor:
        alpha = self.alpha if epoch is None else 0.5 * epoch / 60
        return _Logits.apply(inputs, targets, self.mem.data, alpha)


class Head:
    """An iteration of SNNet one sample at a time, the pseudo label memory a bool matrix."""

    weights = (1.0, 0.8, 0.6)

    def __init__(
        self,
        num_instances: int,
        feature_dim: int,
        *,
        threshold: float = 0.6,
        hard_negative_ratio: float = 0.01,
        device: str = "cpu",
    ) -> None:
        self.threshold = threshold
        self.hard_negative_ratio = hard_negative_ratio
        self.memory = torch.zeros(num_instances, feature_dim, device=device)
        self.labels = torch.eye(num_instances, dtype=torch.bool, device=device)
        self.momentum = 0.0

    def initialize_(self, features: Tensor) -> None:
        self.memory.copy_(normalize(features, dim=1))

    def __call__(self, features: Tensor, index: Tensor) -> Tensor:
        main = loop.mplp(self.memory, index, self.threshold)
        neighbor = loop.nearest_neighbors(self.memory, index)[0][:, 0]
        symmetric, of_neighbor = (
            sk.pack_labels(part) for part in (self.labels[:, index].t(), self.labels[neighbor])
        )
        loop.write_labels_(self.labels, index, main)
        return loop.mutual_label_loss(
            features @ self.memory.t(),
            (main, symmetric, of_neighbor),
            self.weights,
            hard_negative_ratio=self.hard_negative_ratio,
        )

    def update_(self, index: Tensor, features: Tensor) -> None:
        loop.update_memory_(self.memory, index, features, self.momentum)
