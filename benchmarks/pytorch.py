"""What a good engineer would write in plain PyTorch: labels, search, update, ``mmcl`` loss, and torch.compile of it.

The last class is the layer of a memory as trainers have it, with a loop.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from snnet_kernels.reference.label_prediction import first_inconsistent_candidate, select_candidates

from .case import DELTA, MIN_RANK, RATIO, ROWS_AT_ONCE, THRESHOLD, WEIGHTS
from .clock import clock_of

ROWS_IN_CACHE = 32
# Ways to write the product of the rows of two matrices.
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pytorch": lambda left, right: left @ right.t(),
    "pytorch-transposed": lambda left, right: (right @ left.t()).t().contiguous(),
}


def compiled(
    function: Callable[..., Any], device: torch.device, *, dynamic: bool | None = None
) -> Callable[..., Any]:
    """``torch.compile`` at its best: with max-autotune on a GPU; on a CPU there is nothing here that it would tune.

    ``dynamic``: sizes change from batch to batch (a count was read). Then without CUDA graphs, which would be
    recorded anew for each size.
    """
    torch._dynamo.reset()  # else what was compiled for another shape or form counts toward dynamo's limit
    torch._logging.set_logs(dynamo=logging.ERROR)  # forms that read a count break the graph, and say so
    mode = None
    if device.type == "cuda":
        mode = "max-autotune-no-cudagraphs" if dynamic else "max-autotune"
    return torch.compile(function, dynamic=dynamic, mode=mode)


def static(*tensors: Tensor) -> None:
    """These stay where they are: CUDA graphs of compiled code need not copy them each time."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)


def fastest(ways: Iterable[Callable[..., Any]], device: torch.device, *arguments: Any) -> Callable[..., Any]:
    """Of ``ways`` the one that takes the least time for arguments like these: to be found outside the clock."""
    clock = clock_of(device)

    def seconds(way: Callable[..., Any]) -> float:
        way(*arguments)
        return statistics.median(clock.cold(lambda: way(*arguments)) for _ in range(5))

    return min(ways, key=seconds)


def fastest_product(left: Tensor, right: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return fastest(PRODUCTS.values(), left.device, left, right)


def predict_labels(memory: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """bool [B, n] without S: the vectorised reference, without packing the labels into bits.

    Counts ranks instead of sorting, for the candidates of all samples together, a sample's only as far as its
    walk goes; each distinct candidate is multiplied once.
    """
    columns, _, counts = select_candidates(rows, THRESHOLD)
    walked = torch.where(counts > 2, counts, 0)
    first = first_inconsistent_candidate(memory, columns, walked, counts.clamp_min(MIN_RANK), None)
    positives = torch.where(walked > 0, first, counts).clamp_min(2).minimum(counts)
    chosen = torch.arange(columns.shape[1], device=columns.device) < positives[:, None]
    labels = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    return labels.scatter_(1, columns, chosen).scatter_(1, index[:, None], True)


def ranks_of(matrix: Tensor, candidates: Tensor, anchors: Tensor) -> Tensor:
    """How many similarities of each candidate [K] are above the one to its anchor [K]; one loop where compiled."""
    return (matrix[candidates] > matrix[candidates, anchors][:, None]).sum(1)


def ranks_in_parts(matrix: Tensor, candidates: Tensor, anchors: Tensor) -> Tensor:
    """The same in eager PyTorch: on a CPU a few rows at a time, which stay in its cache."""
    part = ROWS_IN_CACHE if matrix.device.type == "cpu" else max(1, len(candidates))
    parts = zip(candidates.split(part), anchors.split(part), strict=True)
    return torch.cat([ranks_of(matrix, *each) for each in parts])


def predict_labels_from_matrix(
    index: Tensor, rows: Tensor, matrix: Tensor, ranks: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """bool [B, n] with S: the candidates of all samples in one row [K], and ``ranks`` of these alone."""
    bar = torch.tensor(THRESHOLD, dtype=torch.float32).item()
    sample, column = (rows > bar).nonzero(as_tuple=True)
    order = rows[sample, column].argsort(descending=True, stable=True)
    order = order[sample[order].argsort(stable=True)]  # by sample, then by falling similarity
    sample, column = sample[order], column[order]
    counts = torch.bincount(sample, minlength=len(index))
    start = (counts.cumsum(0) - counts)[sample]
    place = torch.arange(len(sample), device=sample.device) - start
    inconsistent = ranks(matrix, column, column[start]) > counts.clamp_min(MIN_RANK)[sample]
    first = counts.scatter_reduce(0, sample[inconsistent], place[inconsistent], reduce="amin")
    chosen = place < first.clamp_min(2)[sample]
    labels = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    labels[sample[chosen], column[chosen]] = True
    return labels.scatter_(1, index[:, None], True)


def predict_labels_static(index: Tensor, rows: Tensor, matrix: Tensor, width: int) -> Tensor:
    """bool [B, n], written for torch.compile: every shape is known, no count is read by the host.

    ``width`` is at least the largest number of candidates of any image. Compiled, rows of candidates are gathered,
    compared and counted in one loop; eager PyTorch would write [B, width, n].
    """
    bar = torch.tensor(THRESHOLD, dtype=torch.float32).item()
    similarity, columns = rows.topk(width)
    counts = (rows > bar).sum(1)
    bars = matrix[columns, columns[:, :1]]
    ranks = (matrix[columns] > bars[:, :, None]).sum(2)
    consistent = (ranks <= counts.clamp_min(MIN_RANK)[:, None]) | (similarity <= bar)
    positives = consistent.long().cumprod(1).sum(1).clamp_min(2).minimum(counts)
    chosen = torch.arange(width, device=columns.device) < positives[:, None]
    labels = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    return labels.scatter(1, columns, chosen).scatter(1, index[:, None], torch.ones_like(chosen[:, :1]))


def largest_number_of_candidates(matrix: Tensor) -> int:
    """Of all images, rounded up to a multiple of 8."""
    most = max(int((part > THRESHOLD).sum(1).max()) for part in matrix.split(ROWS_AT_ONCE))
    return -(-most // 8) * 8


def nearest_others(index: Tensor, rows: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """(index [B, k], similarity [B, k]) of the k most similar others; writes into ``rows``."""
    others = rows.scatter_(1, index[:, None], -torch.inf)
    similarity, neighbors = others.max(1, keepdim=True) if k == 1 else others.topk(k)
    return neighbors, similarity


def blend_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor) -> None:
    """M[index] <- normalize(α M[index] + (1 − α) f); no image comes twice."""
    memory[index] = normalize(momentum * memory[index] + (1 - momentum) * features, dim=1)


def blend_with_matrix_(
    memory: Tensor, matrix: Tensor, index: Tensor, features: Tensor, momentum: Tensor, similarity: Tensor
) -> None:
    """Memory and S by the recurrence, every shape known: written for torch.compile; no image comes twice."""
    keep, take = momentum, 1 - momentum
    blended = keep * memory[index] + take * features
    lengths = blended.square().sum(1).sqrt()
    before = matrix[index]
    cross = similarity[:, index]
    block = keep * keep * before[:, index] + keep * take * (cross + cross.t())
    block = (block + take * take * (features @ features.t())) / (lengths[:, None] * lengths)
    rows = (keep * before + take * similarity) / lengths[:, None]
    rows = rows.index_copy(1, index, block)
    memory[index] = blended / lengths[:, None]
    matrix[index] = rows
    matrix[:, index] = rows.t()


def dense_mmcl(similarity: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """``mmcl`` of ``similarity`` [B, n] for bool labels [B, n]: masks, and one topk a label set; all shapes static."""
    n = similarity.shape[1]
    widest = max(1, int(RATIO * n))
    total = similarity.new_zeros(())
    for label, weight in zip(labels, WEIGHTS, strict=True):
        positives = label.sum(1)
        positive_part = ((1 - similarity).square() * label).sum(1) / positives.clamp_min(1)
        hard = (RATIO * (n - positives).double()).floor().clamp_min(1)
        hardest = similarity.masked_fill(label, -2.0).topk(widest).values  # -2: below every similarity
        taken = torch.arange(widest, device=hardest.device) < hard[:, None]
        negative_part = ((1 + hardest).square() * taken).sum(1) / hard.to(similarity.dtype)
        total = total + weight * (DELTA * positive_part + negative_part).mean()
    return total / sum(WEIGHTS)


class LoopedMemory(torch.autograd.Function):
    """The usual layer of MMCL and of clustering trainers: logits; in backward each entry in turn moves its centre.

    A centre is a row of the memory.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, targets: Tensor, centres: Tensor, momentum: float) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        ctx.centres, ctx.momentum = centres, momentum
        return inputs @ centres.t()

    @staticmethod
    def moving(inputs: Tensor, targets: Tensor, centres: Tensor) -> Any:
        """(entry, its centre), in the order in which they move."""
        return zip(inputs, targets, strict=True)

    @classmethod
    def backward(cls, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        before = gradient @ ctx.centres
        cls.move(*ctx.saved_tensors, ctx.centres, ctx.momentum)
        return before, None, None, None

    @classmethod
    def move(cls, inputs: Tensor, targets: Tensor, centres: Tensor, momentum: float) -> None:
        for row, target in cls.moving(inputs, targets, centres):
            centres[target] = momentum * centres[target] + (1 - momentum) * row
            centres[target] /= centres[target].norm()
