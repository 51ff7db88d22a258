"""The mutants that the tests share. All barriers that a test leaves out are in one build, each behind a switch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.kernels.cuda_on_cpu import Emulation, mutant


def constants(**values: int) -> Callable[[str], str]:
    """An edit that gives constants of a source other values, so that small inputs take every path."""

    def edit(text: str) -> str:
        for name, value in values.items():
            text, found = re.subn(rf"(constexpr int {name} = )[^;]+;", rf"\g<1>{value};", text)
            assert found == 1, name
        return text

    return edit


def small_constants() -> Emulation:
    """Few listed candidates, few threads: rows overflow, loops go round, samples come in several groups.

    Neighbours are sorted in global memory from the fifth on.
    """
    prediction = constants(kListed=6, kSelectThreads=64, kCountThreads=64, kDecideThreads=32, kRowLoads=2)
    neighbors = constants(kNeighborThreads=64, kSharedNeighbors=4, kNeighborLoads=2)
    edits = {"label_plan.cuh": prediction, "neighbors.cuh": neighbors}
    return mutant(edits, "label_prediction.cu", "neighbors.cu")


@dataclass(frozen=True)
class Barrier:
    """The ``which``-th statement ``text`` of a file, or the last one before what stands in ``before``."""

    file: str
    text: str
    which: int = -1
    before: str = ""

    def switched(self, source: str, number: int) -> str:
        """``source`` with this barrier behind the switch ``number``."""
        end = source.index(self.before) if self.before else len(source)
        found = list(re.finditer(re.escape(self.text), source[:end]))[self.which]
        switch = f"{{ if (cuda_on_cpu::settings.left_out != {number}) {self.text} }}"
        return source[: found.start()] + switch + source[found.end() :]


BARRIERS = {
    "after the count": Barrier("label_count.cuh", "group_barrier<kGroup>();", 3),
    "after the list of marked blocks": Barrier("label_count.cuh", "__syncwarp();", 2),
    "of rows": Barrier("rows.cuh", "__syncthreads();", 0),
    "before the columns": Barrier("cache_tile.cuh", "__syncthreads();", before="// The columns, 32 sectors"),
    "after counting digits": Barrier(
        "hard_negatives.cuh", "__syncthreads();", before="// From the counts, the digit"
    ),
}


def switched_barriers() -> Emulation:
    """The kernels with ``BARRIERS``: ``leave_out`` takes the number of one in their order."""

    def edit_of(file: str) -> Callable[[str], str]:
        def edit(text: str) -> str:
            for number, barrier in enumerate(BARRIERS.values()):
                text = barrier.switched(text, number) if barrier.file == file else text
            return text

        return edit

    edits = {barrier.file: edit_of(barrier.file) for barrier in BARRIERS.values()}
    return mutant(edits, "label_prediction.cu", "memory_update.cu", "loss.cu")
