"""Tiny random arguments of every operation, and the comparison of results with the reference's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import backends, reference
from snnet_kernels.neighbor_list_layout import NeighborLists
from tests.kernels.inputs import memory_of, unit_rows

KINDS = ("exact", "exact", "exact", "same", "zero rows", "duplicates", "unit")
THRESHOLDS = (-10.0, -0.25, 0.0, 0.1, 0.25, 0.3, 0.5625, 0.6, 0.75, 1.0, 20.0)
MIN_RANKS = (0, 1, 2, 3, 10, 1000, 2**31 - 1)
MOMENTA = (0.0, 0.0, 0.25, 0.3, 0.5, 0.75, 1.0)


@dataclass(eq=False)
class Arguments:
    """What the operations take, of one n, d and B.

    Features are small integers times a power of two: every product of them is exact in float32, in any order of
    summation and in half precision too, and there are many ties.
    """

    memory: Tensor  # [n, d]
    features: Tensor  # [B, d]
    index: Tensor  # [B]
    cache: Tensor  # [n, n]
    similarity: Tensor  # [B, n]
    labels: tuple[Tensor, Tensor, Tensor]  # uint8 [B, L]
    row_bits: Tensor  # uint8 [n, L]
    column_bits: Tensor  # uint8 [n, L]

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.memory.shape[0], self.memory.shape[1], self.index.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        labels = {f"labels[{k}]": label for k, label in enumerate(self.labels)}
        return {name: value for name, value in vars(self).items() if name != "labels"} | labels

    def fingerprint(self) -> bytes:
        """The bytes of all tensors, to see whether a call has touched one."""
        return b"".join(tensor.numpy().tobytes() for tensor in self.tensors().values())


def seed_of(random: np.random.Generator) -> int:
    """A seed for what draws by a generator of its own."""
    return int(random.integers(2**31))


def draw(random: np.random.Generator) -> Arguments:
    """Arguments of a random size: n 1…40, d 1…8, B 0…6."""
    n, d, batch = (int(value) for value in random.integers((1, 1, 0), (41, 9, 7)))
    kind, seed = KINDS[random.integers(len(KINDS))], seed_of(random)
    rows = unit_rows(n + batch, d, seed) if kind == "unit" else memory_of(kind, n + batch, d, seed)
    memory, features = rows[:n].clone(), rows[n:].clone()
    index = torch.from_numpy(random.integers(0, n, batch))
    bits = torch.from_numpy(random.random((3 * batch + n, n)) < random.random())
    packed = reference.pack_labels(bits)
    labels = packed[: 3 * batch].clone()
    return Arguments(
        memory,
        features,
        index,
        memory @ memory.t(),
        reference.memory_similarity(features, memory),
        (labels[:batch].clone(), labels[batch : 2 * batch].clone(), labels[2 * batch :].clone()),
        packed[3 * batch :].clone(),
        reference.pack_labels(bits[3 * batch :].t()),
    )


def draw_lists(random: np.random.Generator, memory: Tensor, symmetric: bool) -> NeighborLists:
    """Lists of any number of places, from any floor; made by the reference."""
    n = memory.shape[0]
    capacity = int((1, random.integers(1, n + 1), n)[random.integers(3)])
    floor = float((-torch.inf, -1.0, 0.0, 0.25, 0.9)[random.integers(5)])
    if not symmetric:
        return reference.neighbor_lists(memory, capacity, floor)
    made = reference.neighbor_lists(memory, int(random.integers(1, n + 1)), floor)
    return reference.symmetric_lists(made, capacity)


def listed(memory: Tensor, k: int, floor: float, symmetric: bool) -> NeighborLists:
    """The lists of the reference."""
    if not symmetric:
        return reference.neighbor_lists(memory, k, floor)
    n = len(memory)
    width = min(k, n)
    made = reference.neighbor_lists(memory, n if width == n else max(1, width // 2), floor)
    return reference.symmetric_lists(made, width)


def equal(actual: Tensor, expected: Tensor) -> bool:
    """The same type, shape and values to the bit; a NaN equals a NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if torch.equal(actual, expected):
        return True
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def close(actual: Tensor, expected: Tensor, tolerance: float, summands: Tensor | None = None) -> bool:
    """The same type and shape, values within ``tolerance`` of each other times the larger of 1 and themselves.

    Of sums that may cancel ``summands`` are the sums of magnitudes, which count in place of themselves where larger.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if torch.equal(actual, expected):
        return True
    unit = expected.abs().clamp_min(1)
    bound = tolerance * (unit if summands is None else unit.maximum(summands))
    near = expected.isfinite() & ((actual - expected).abs() <= bound)  # infinities have no difference
    return bool((near | (actual == expected) | (actual.isnan() & expected.isnan())).all())


def instruction_sets() -> list[str]:
    """Those that the compiled CPU library has on this processor; none where it is not loaded."""
    if not sk.backend_info().libraries[0].loaded:
        return []
    before, found = backends.instruction_set(), []
    for name in backends.INSTRUCTION_SETS:
        try:
            found.append(backends.select_instruction_set(name))
        except ValueError:
            continue
    backends.select_instruction_set(before)
    return found


def strided(random: np.random.Generator, tensor: Tensor) -> Tensor:
    """The same values [B, k] with other strides."""
    rows, columns = tensor.shape
    form = random.integers(4)
    if form == 0:
        return tensor.t().contiguous().t()
    if form == 1:
        wide = tensor.new_full((rows, 2 * columns + 1), torch.nan)
        wide[:, 1::2] = tensor
        return wide[:, 1::2]
    if form == 2:
        return torch.cat([tensor, tensor])[:rows].flip(0).flip(0)
    return tensor.to((torch.float64, torch.float16, torch.bfloat16)[random.integers(3)])
