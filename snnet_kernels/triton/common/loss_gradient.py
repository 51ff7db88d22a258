"""What the streaming losses share: how the work is cut, label bits of a tile, and the product slope · memory.

A program has a tile of samples and a range of columns. It makes the similarities of a few tiles of columns, leaves
their slopes dL/ds in a scratch of its own, and adds slopes · memory into a partial dL/df that is its own too. The
partials are added up in order, so a loss is the same in every run; nothing grows with B n.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .entries import label_bytes, load_label_bits
from .launching import Tile
from .products import multiply_add

# Columns whose slopes are held at once: the partials are read and written once for so many.
HELD = 256
PROGRAMS_PER_PROCESSOR = 4
# Columns that are worth a partial of their own; what all partials together may take.
FEWEST_COLUMNS = 128
PARTIAL_BYTES = 256 * 2**20
# All registers there are: else some would be spilled so that more programs fit side by side.
REGISTERS = 255


class Partials(NamedTuple):
    """What the programs of a loss write (uninitialised), and how the work is divided among them."""

    gradient: Tensor  # fp32 [ranges, row tiles, d / BLOCK_B, BLOCK_A, BLOCK_B], whole tiles of dL/df
    loss: Tensor  # fp64 [programs]
    slopes: Tensor  # fp32 [programs, HELD / BLOCK_B, BLOCK_A, BLOCK_B], scratch
    span: int  # columns of a range, whole tiles

    @property
    def programs(self) -> int:
        return self.loss.numel()

    def reduce(self, batch_size: int, d: int) -> tuple[Tensor, Tensor]:
        """(loss [], dL/df [B, d]): the sums over all programs."""
        tiles = self.gradient.sum(0).transpose(1, 2)
        gradient = tiles.flatten(0, 1).flatten(1, 2)[:batch_size, :d]
        return self.loss.sum().float(), gradient.contiguous()


def active_labels(labels: Sequence[Tensor], weights: Sequence[float]) -> tuple[list[Tensor], list[float]]:
    """The label sets of some weight, and their shares of the sum of the weights."""
    total = sum(weights)
    kept = [k for k, weight in enumerate(weights) if weight > 0]
    return [labels[k] for k in kept], [weights[k] / total for k in kept]


def programs_of_columns(
    batch_size: int, n: int, tile: Tile, device: torch.device, most: int | None = None
) -> tuple[int, int]:
    """(programs, columns of each) that fill the device, with ``FEWEST_COLUMNS`` or more and in ``most`` ranges."""
    row_tiles = launching.blocks_of(batch_size, tile.rows)
    ranges = launching.blocks_of(PROGRAMS_PER_PROCESSOR * launching.processors(device), row_tiles)
    ranges = min(ranges, launching.blocks_of(n, FEWEST_COLUMNS), ranges if most is None else max(most, 1))
    span = launching.blocks_of(launching.blocks_of(n, ranges), tile.columns) * tile.columns
    return launching.blocks_of(n, span) * row_tiles, span


def partials(batch_size: int, n: int, d: int, tile: Tile, device: torch.device) -> Partials:
    row_tiles = launching.blocks_of(batch_size, tile.rows)
    whole = row_tiles, launching.blocks_of(d, tile.columns), tile.rows, tile.columns
    programs, span = programs_of_columns(batch_size, n, tile, device, PARTIAL_BYTES // (4 * math.prod(whole)))
    return Partials(
        torch.empty(programs // row_tiles, *whole, dtype=torch.float32, device=device),
        torch.empty(programs, dtype=torch.float64, device=device),
        torch.empty(programs, HELD * tile.rows, dtype=torch.float32, device=device),
        span,
    )


@triton.jit
def label_tile(labels, sample, first, n, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):
    """0 or 1, int32 [BLOCK_A, BLOCK_B]: the label bits of ``sample`` int64 [BLOCK_A] from column ``first`` on.

    ``sample`` lies inside; ``first`` is a multiple of 8; past column n the bits are 0, whatever the labels have there.
    """
    byte = first // 8 + tl.arange(0, BLOCK_B // 8)
    packed = load_label_bits(labels + sample[:, None] * label_bytes(n), byte[None, :], n)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (BLOCK_A, BLOCK_B))


@triton.jit
def add_slope_products(
    slopes,  # fp32 [HELD / BLOCK_B, BLOCK_A, BLOCK_B]
    memory,  # fp32 [n, d]
    gradient,  # fp32 [d / BLOCK_B, BLOCK_A, BLOCK_B], in and out
    first,  # their first column
    filled,  # how many of their columns are set, whole tiles
    started,  # whether the gradient has a value
    n,
    d,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """gradient += slopes · memory[first : first + filled]; slopes past column n are 0."""
    for k in tl.range(0, d, BLOCK_B, disable_licm=True):
        depth = k + tl.arange(0, BLOCK_B)
        inside = (depth < d)[None, :]
        products = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
        for held in range(0, filled, BLOCK_K):
            column = held + tl.arange(0, BLOCK_K)
            row = tl.minimum(first + column, n - 1).to(tl.int64)
            part = slopes + (held // BLOCK_B) * (BLOCK_A * BLOCK_B) + held % BLOCK_B
            left = tl.load(part + tl.arange(0, BLOCK_A)[:, None] * BLOCK_B + tl.arange(0, BLOCK_K)[None, :])
            right = tl.load(memory + row[:, None] * d + depth[None, :], mask=inside, other=0.0)
            products = multiply_add(left, right, products, PRECISION)
        # Read only now, that the loop has the registers.
        place = tl.arange(0, BLOCK_A)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
        if started:
            products += tl.load(gradient + place)
        tl.store(gradient + place, products)
        gradient += BLOCK_A * BLOCK_B
