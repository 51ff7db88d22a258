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
    """Few keys, events, threads: candidates are bits, events overflow, loops go round, samples come in groups.

    Neighbours are sorted in global memory from the fifth on, at most four candidates are left to the whole GPU, and
    rows that are multiplied for neighbours wait for the room of one or two. Warps find sums and maxima as below compute
    capability 8.0.
    """
    edits = {
        "device.cuh": lambda text: text.replace("!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800", "false"),
        "list_labels.cu": constants(kProductFloats=100),
        "list_labels.cuh": constants(kFewestKeys=6, kLabelThreads=64, kLabelLoads=2, kMostUntold=4),
        "list_update.cuh": constants(kColumnsAtOnce=64, kFewestEvents=5, kEventsOfPlace=0, kPartsOfEvents=1),
        "memory_update.cuh": constants(kUpdateThreads=64),
        "neighbor_lists.cuh": constants(kTakeThreads=32, kTakenAtOnce=64),
        "neighbors.cuh": constants(kNeighborThreads=64, kSharedNeighbors=4, kNeighborLoads=2),
    }
    return mutant(edits, "list_labels.cu", "memory_update.cu", "neighbor_lists.cu", "neighbors.cu")


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
    "of keys": Barrier("device.cuh", "__syncthreads();", before="return warp_largest("),
    "before the last block is told": Barrier("device.cuh", "__syncthreads();", before="const bool is_last ="),
    "before the candidates are read": Barrier(
        "list_labels.cuh", "__syncthreads();", before="TwoLargest own;"
    ),
    "after the members": Barrier(
        "list_rank.cuh", "__syncthreads();", before="const auto visit = [&](auto&& show) {"
    ),
    "after what is pushed out": Barrier("list_rank.cuh", "group.sync();", 0),
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
    return mutant(edits, "list_labels.cu", "memory_update.cu", "loss.cu")
