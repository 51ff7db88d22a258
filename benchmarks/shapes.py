"""Sizes by name, and the shapes that a run measures: B batch entries, n images in the memory, d feature dimensions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

SIZES = {
    "tiny": 600,  # to try the code, not to measure
    "market": 12_936,
    "duke": 16_522,
    "msmt17": 32_621,
    "large": 100_000,
    "million": 1_000_000,
}
DEFAULT_SIZES = {"cpu": ("market",), "cuda": ("market", "msmt17", "million")}
DIMS = (2048, 512)
GROWTH_DIM, GROWTH = 256, (6_468, 12_936, 32_621, 100_000)
GROWTH_BASE = f"n{GROWTH[1]}-d{GROWTH_DIM}-b64"  # what growth is a multiple of


class Shape(NamedTuple):
    """One set of inputs: a batch of ``batch`` images out of ``n``, features of ``d`` dimensions (0: no features)."""

    size: str
    n: int
    d: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.size}-d{self.d}-b{self.batch}" if self.d else self.size


def is_growth(name: str) -> bool:
    """Whether a shape of this name is one of :func:`growth_shapes`."""
    return name[:1] == "n" and name[1:2].isdigit()


def shapes(device: str, sizes: Collection[str] = (), dims: Collection[int] = ()) -> list[Shape]:
    """The shapes of ``sizes`` (by default those of the device) on ``device``, for each of ``dims``.

    On a CPU ``million`` is only one of :func:`growth_shapes`. Raises ValueError for a name that is not in SIZES.
    """
    found = []
    for size in sizes or DEFAULT_SIZES[device]:
        if size not in SIZES:
            raise ValueError(f"--size must be of {', '.join(SIZES)}, got {size!r}")
        if size == "million" and device == "cpu":
            continue
        for d in dims or (DIMS if size not in ("tiny", "million") else DIMS[-1:]):
            found.append(Shape(size, SIZES[size], d, _batch_size(device, size, d)))
    return found


def one_dim(device: str, sizes: Collection[str] = (), dims: Collection[int] = ()) -> list[Shape]:
    """Of each size the first d, where features are not read."""
    first: dict[str, Shape] = {}
    for shape in shapes(device, sizes, dims):
        first.setdefault(shape.size, shape)
    return list(first.values())


def growth_shapes(device: str, sizes: Collection[str] = ()) -> list[Shape]:
    """Shapes that differ in n alone, for the cost as a function of n; a million images only where asked for."""
    if set(sizes) == {"tiny"}:
        return [Shape(f"n{n}", n, GROWTH_DIM, 8) for n in (300, 600)]
    counts = () if set(sizes) == {"million"} else GROWTH
    if "million" in sizes and device == "cpu":
        counts = (*counts, SIZES["million"])
    return [Shape(f"n{n}", n, GROWTH_DIM, _batch_size(device, "growth", GROWTH_DIM)) for n in counts]


def fixed(
    full: dict[str, list[Shape]], tiny: list[Shape], *, asked: bool = False
) -> Callable[[str, Collection[str], Collection[int]], list[Shape]]:
    """Shapes that do not follow --size: ``full[device]``, or ``tiny`` if --size is tiny alone.

    With ``asked`` there are none unless a size is given.
    """

    def chosen(device: str, sizes: Collection[str], dims: Collection[int]) -> list[Shape]:
        if device not in full or (asked and not sizes):
            return []
        return tiny if list(sizes) == ["tiny"] else full[device]

    return chosen


def _batch_size(device: str, size: str, d: int) -> int:
    if size in ("tiny", "million"):
        return 8 if size == "tiny" else 1024
    return 128 if device == "cuda" and d == 2048 else 64  # the paper's: 128 with ResNet-50, 64 with OSNet
