"""Launches: tile shapes, the choice among them, the number of programs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from triton import knobs
from triton.runtime.errors import OutOfResources, PTXASError

Result = TypeVar("Result")

INTERPRETED = bool(knobs.runtime.interpret)


class Tile(NamedTuple):
    """The part of a product that one program makes at once, and the resources it gets."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    # A thread's registers at most. Without a number ptxas spills a little here and there for more programs.
    registers: int = 255

    def options(self) -> dict[str, int]:
        return {
            "BLOCK_A": self.rows,
            "BLOCK_B": self.columns,
            "BLOCK_K": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.registers,
        }


# Before 3.8 Triton makes no fp32 product of less than 16 terms, which takes more registers.
OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
_IEEE_DEPTH, _IEEE_REGISTERS = (16, 255) if OLD_TRITON else (8, 168)

# The default first. All are square: the bars of the rank counts are made in tiles of the counts' own shape.
_LARGE_IEEE = () if OLD_TRITON else (Tile(128, 128, _IEEE_DEPTH, 8, 3),)  # 16 deep it spills within the loop
TILES: dict[str, tuple[Tile, ...]] = {
    "ieee": (Tile(64, 64, _IEEE_DEPTH, 4, 3, registers=_IEEE_REGISTERS), *_LARGE_IEEE),
    "tf32x3": (Tile(64, 64, 16, 4, 3), Tile(128, 128, 16, 8, 3)),  # one depth, by which sums are rounded
    "tf32": (Tile(64, 64, 32, 4, 4), Tile(128, 128, 32, 8, 3)),
    "bf16": (Tile(64, 64, 64, 4, 3), Tile(128, 128, 64, 8, 3)),
}

# The last wave is only part of one where more programs fit side by side than registers say: of four that is little.
WAVES = 4

_fastest: dict[tuple[Any, ...], Tile] = {}
_CYCLES = 1_000_000  # that the device waits before a call is measured: else it would wait for the host


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run ``programs`` programs of a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        # Multiply-adds are fused whatever TRITON_DEFAULT_FP_FUSION says: "ieee" products are chains of them.
        kernel[(programs,)](*arguments, enable_fp_fusion=True, **options)


def with_fastest_tile(
    kernel: tuple[str | int, ...],
    tiles: Sequence[Tile],
    device: torch.device,
    sizes: Sequence[int],
    run: Callable[[Tile], Result],
) -> Result:
    """``run(tile)`` with the fastest of the tiles, measured once for sizes of one magnitude.

    ``kernel`` names what runs: the kernel and everything that has it compiled anew. ``run`` must have no effect
    but its result. Where nothing can be measured (under graph capture) or should be
    (``torch.use_deterministic_algorithms``: another tile rounds the sums of a loss otherwise) the default is taken.
    """
    key = (*kernel, device, *(size.bit_length() for size in sizes))
    tile = _fastest.get(key)
    if tile is None:
        if len(tiles) == 1 or not _measurable(device):
            return run(tiles[0])
        tile = _fastest[key] = min(tiles, key=lambda tile: _milliseconds(device, lambda: run(tile)))
    return run(tile)


def _measurable(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and not INTERPRETED
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.cuda.is_current_stream_capturing()
    )


def _milliseconds(device: torch.device, run: Callable[[], object]) -> float:
    times = []
    with torch.cuda.device(device):
        for _ in range(4):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                torch.cuda._sleep(_CYCLES)
                start.record()
                run()
                end.record()
            except (
                OutOfResources,
                PTXASError,
                torch.OutOfMemoryError,
            ):  # of a smaller device, or another one
                return float("inf")
            end.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times[1:])  # the first compiles


@lru_cache
def processors(device: torch.device) -> int:
    """How many programs run side by side at the least: the multiprocessors of the device."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


def blocks_of(count: int, size: int) -> int:
    return -(-count // size)


def programs_at_once(tile: Tile, device: torch.device) -> int:
    """How many programs of a tile run side by side: each multiprocessor has 65,536 registers."""
    registers = 8 * blocks_of(tile.registers, 8) * 32 * tile.warps
    return max(1, 65_536 // registers) * processors(device)


def parts_of_columns(batch_size: int, n: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """(parts, columns of each) of n columns; the programs of all row tiles fill the device ``WAVES`` times, just so."""
    wanted = max(1, WAVES * programs_at_once(tile, device) // blocks_of(batch_size, tile.rows))
    span = blocks_of(blocks_of(n, wanted), tile.columns) * tile.columns
    return blocks_of(n, span), span
