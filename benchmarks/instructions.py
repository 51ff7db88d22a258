"""``python -m benchmarks.instructions``: instructions of the CPU kernels, a measure that noise does not move.

Counts what one call of each operation executes inside the compiled library (not what torch's products or Python
do), at one small size and with one thread, under valgrind's callgrind, for the instruction sets that valgrind
knows. Compares with ``instructions.json`` and fails where an operation takes more than 2 % more, or is in one of
the two alone; ``--write`` makes the counts of this build the stated ones. Compilers differ: compare counts of the
same one.

Needs valgrind with its headers, and gcc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "instructions.json"
LIBRARY = "_C.abi3.so"
INSTRUCTION_SETS = ("baseline", "avx2")
N, D, BATCH, IDENTITIES, NEIGHBORS = 2000, 64, 32, 116, 128
TOLERANCE = 0.02

# Switches of callgrind are instructions that only it understands: they have to be compiled.
SWITCH = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void stop(const char* name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write the counts to {FILE.name}")
    parser.add_argument("--run-under-valgrind", metavar="SWITCH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_under_valgrind:
        _run_operations(ctypes.CDLL(arguments.run_under_valgrind))
        return 0
    for program in ("valgrind", "gcc"):
        if shutil.which(program) is None:
            print(f"{program} is not installed", file=sys.stderr)
            return 1
    found = measure()
    if arguments.write or not FILE.exists():
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {FILE}")
        return 0
    return compare(json.loads(FILE.read_text()), found)


def measure() -> dict[str, Any]:
    """The counts by instruction set and operation, and what they were counted on."""
    from snnet_kernels import backends

    with tempfile.TemporaryDirectory() as folder:
        switch, source, dumps = (Path(folder) / name for name in ("switch.so", "switch.c", "counts"))
        source.write_text(SWITCH)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", switch, source], check=True)
        command = [
            *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", "--compress-strings=no"),
            *(f"--callgrind-out-file={dumps}", sys.executable, "-m", "benchmarks.instructions"),
            *("--run-under-valgrind", str(switch)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)
        counts: dict[str, dict[str, int]] = {name: {} for name in INSTRUCTION_SETS}
        for path in sorted(dumps.parent.glob("counts.*"), key=lambda path: int(path.suffix[1:])):
            label, count = read_dump(path.read_text())
            if label:
                instruction_set, _, operation = label.partition("/")
                counts[instruction_set][operation] = count
    library = backends.backend_info().libraries[0].detail.rpartition(",")[0]
    return {"size": {"n": N, "d": D, "batch": BATCH}, "library": library, "counts": counts}


def compare(stated: dict[str, Any], found: dict[str, Any]) -> int:
    """Print both and their ratio; 1 where an operation takes more than stated, or only one of them has it."""
    worse = 0
    print(f"stated: {stated['library']}\nhere:   {found['library']}")
    for instruction_set, counts in found["counts"].items():
        before = stated["counts"].get(instruction_set, {})
        for operation in counts | before:
            verdict, failed = _beside(before.get(operation), counts.get(operation))
            worse += failed
            print(f"{instruction_set:<9} {operation:<34} {counts.get(operation, 0):>12,}  {verdict}")
    return 1 if worse else 0


def _beside(before: int | None, count: int | None) -> tuple[str, bool]:
    """What is said of a stated and a found count, and whether it is a failure."""
    if before is None or count is None:
        return f"NOT {'STATED: --write' if before is None else 'COUNTED any more'}", True
    more = count > (1 + TOLERANCE) * before
    return f"{count / before:.3f} of {before:,}{'  MORE' if more else ''}", more


def read_dump(text: str) -> tuple[str, int]:
    """(label, instructions executed inside the library) of one dump of callgrind."""
    label, library, total, skip = "", "", 0, False
    for line in text.splitlines():
        if line.startswith("desc: Trigger: Client Request: "):
            label = line.removeprefix("desc: Trigger: Client Request: ").strip()
        elif line.startswith("ob="):
            library = line.removeprefix("ob=")
        elif line.startswith("calls="):
            skip = True  # the next line is what the callee took: counted where the callee is
        elif line[:1] in "0123456789+-*" and line:
            if not skip and library.endswith(LIBRARY):
                total += int(line.split()[1])
            skip = False
    return label, total


def _run_operations(switch: ctypes.CDLL) -> None:
    import torch

    from snnet_kernels import backends

    torch.set_num_threads(1)
    for instruction_set in INSTRUCTION_SETS:
        backends.select_instruction_set(instruction_set)
        for name, call in _operations():
            call()
            switch.start()
            call()
            switch.stop(f"{instruction_set}/{name}".encode())


def _operations() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every compiled operation on the same inputs, each from the same state; ``symmetric_lists`` builds them first."""
    import torch

    import snnet_kernels as sk
    from snnet_kernels.testing import clustered_features

    memory = clustered_features(N, D, identities=IDENTITIES)
    lists = sk.neighbor_lists(memory, NEIGHBORS, floor=0.3, symmetric=True)
    kept = [memory.clone(), *(table.clone() for table in lists)]
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(N, generator=generator)[:BATCH]
    features = torch.nn.functional.normalize(memory[index] + 0.03, dim=1)
    similarity = features @ memory.t()
    stored, as_lists = sk.PseudoLabelMemory(N), sk.PseudoLabelMemory(N, storage="lists")
    everyone = torch.arange(N)
    for labels in (stored, as_lists):
        labels.write_(everyone, sk.mplp(memory, everyone, lists=lists))
    neighbor = sk.nearest_neighbors(memory, index, lists=lists)[0][:, 0]
    labels = [stored.rows(index), stored.columns(index), stored.rows(neighbor)]
    dense = sk.unpack_labels(labels[0], N)
    empty = torch.zeros_like(labels[0])
    weights = [1.0, 0.8, 0.6]

    def written(where: sk.PseudoLabelMemory) -> tuple[None, None]:
        """Empties rows and then writes what was there: twice the same work, and the state as before."""
        return where.write_(index, empty), where.write_(index, labels[0])

    def updated(**options: Any) -> None:
        for tensor, before in zip((memory, *lists), kept, strict=True):
            tensor.copy_(before)
        sk.update_memory_(memory, index, features, 0.3, **options)

    def fused(kind: str) -> Any:
        return sk.fused_mutual_label_loss(features, memory, labels, weights, similarity=similarity, kind=kind)

    yield "pack_labels", lambda: sk.pack_labels(dense)
    yield "unpack_labels", lambda: sk.unpack_labels(labels[0], N)
    yield "gather_labels, columns", lambda: stored.columns(index)
    yield "write_labels_, emptied and back", lambda: written(stored)
    yield "gather_label_lists, columns", lambda: as_lists.columns(index)
    yield "write_label_lists_, emptied and back", lambda: written(as_lists)
    yield "neighbor_lists", lambda: sk.neighbor_lists(memory, NEIGHBORS // 2, floor=0.3)
    yield "symmetric_lists", lambda: sk.neighbor_lists(memory, NEIGHBORS, floor=0.3, symmetric=True)
    yield "mplp, lists", lambda: sk.mplp(memory, index, lists=lists)
    yield "mplp, streaming", lambda: sk.mplp(memory, index)
    yield "nearest_neighbors, lists", lambda: sk.nearest_neighbors(memory, index, lists=lists)
    yield "nearest_neighbors, 10 streaming", lambda: sk.nearest_neighbors(memory, index, 10)
    yield "mutual_label_loss, mmcl", lambda: sk.mutual_label_loss(similarity, labels, weights)
    yield "fused_mutual_label_loss, mmcl", lambda: fused("mmcl")
    yield "fused_mutual_label_loss, l2", lambda: fused("l2")
    yield "update_memory_", updated
    yield "update_memory_, lists", lambda: updated(lists=lists, similarity=similarity)


if __name__ == "__main__":
    sys.exit(main())
