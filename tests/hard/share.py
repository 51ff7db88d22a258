"""The share of an attack that one process does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Share:
    """Part ``part`` of ``parts`` of an attack at ``scale`` (1: full size), in a folder of its own."""

    seed: int
    scale: float
    part: int
    parts: int
    folder: Path

    def count(self, full: int) -> int:
        """How many of ``full`` tries are this share's: at least one in all parts together."""
        wanted = max(1, math.ceil(full * self.scale))
        return len(range(self.part, wanted, self.parts))

    def numbers(self, full: int) -> range:
        """The numbers of this share's tries, among those of all parts."""
        return range(self.part, max(1, math.ceil(full * self.scale)), self.parts)

    def random(self, *key: int) -> np.random.Generator:
        """The same stream for the same seed and key, whatever the number of parts."""
        return np.random.default_rng([self.seed, *key])

    def breadcrumb(self, text: str) -> None:
        """Leave word of what is being tried, for the case that the process does not come back."""
        (self.folder / "breadcrumb").write_text(text, encoding="utf-8")
