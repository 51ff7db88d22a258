"""``python -m tests.hard``: run the attacks, some at a time; one table of what was tried and what failed."""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.hard import files, fuzz, hostile, kills, ranks, signals, two_runs, walks
from tests.hard.drawing import instruction_sets
from tests.hard.share import Share
from tests.hard.tally import Tally

# Each attack, and into how many parts it is cut: the longest, and those that wait, come first, so that all processes
# end together.
ATTACKS: dict[str, tuple[Callable[[Share], Tally], int]] = {
    "two-runs": (two_runs.attack, 1),
    "kills": (kills.attack, 2),
    "signals": (signals.attack, 2),
    "ranks": (ranks.attack, 1),
    "files": (files.attack, 2),
    "fuzz": (fuzz.attack, 8),
    "hostile": (hostile.hostile, 2),
    "aliased": (hostile.aliased, 2),
    "modules": (walks.attack, 2),
}
CALLS = ("valid ", "hostile ", "aliased ", "walk of ")  # rows of the table that count calls of snnet_kernels


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.hard",
        description="Attack the packages: fuzzed calls, damaged files, kills, signals, two runs on one folder.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size (default 1)")
    parser.add_argument("--only", help=f"attacks to run, with commas between: {', '.join(ATTACKS)}")
    parser.add_argument("--processes", type=int, default=2, help="that run at the same time (default 2)")
    given = parser.parse_args()
    names = list(ATTACKS) if given.only is None else given.only.split(",")
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        parser.error(f"--only: there is no attack {unknown[0]!r}; there are {', '.join(ATTACKS)}")
    if not instruction_sets():
        parser.error("the compiled CPU library is not loaded (python -m snnet_kernels says why)")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="snnet-hard-") as folder:
        tally = run(names, given.seed, given.scale, given.processes, Path(folder))
    print(tally.table())
    calls = sum(n for kind, n in tally.tries.items() if kind.startswith(CALLS) and not fuzz.is_no_call(kind))
    print(f"{calls:,} calls of snnet_kernels, {time.monotonic() - started:.0f} s in all")
    return 1 if tally.total_failures() else 0


def run(names: list[str], seed: int, scale: float, processes: int, folder: Path) -> Tally:
    """All parts of the attacks ``names``, so many at a time, each in a forked process; what they counted together."""
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and so would ours
    waiting = [(name, part) for name in names for part in range(ATTACKS[name][1])]
    running: dict[int, tuple[str, int]] = {}
    total, Tally.told = Tally(), sys.stderr
    while waiting or running:
        while waiting and len(running) < processes:
            name, part = waiting.pop(0)
            place = folder / f"{name}-{part}"
            place.mkdir()
            pid = os.fork()
            if pid == 0:
                _run_part(name, Share(seed, scale, part, ATTACKS[name][1], place))
            running[pid] = name, part
        pid, status, used = os.wait4(-1, 0)
        name, part = running.pop(pid)
        found = _result(folder / f"{name}-{part}", name, status)
        total.add(found)
        seconds = used.ru_utime + used.ru_stime  # without the programs that servers forked for it
        counts = f"{sum(found.tries.values()):,} tries, {found.total_failures():,} failures, {seconds:.0f} s of CPU"
        print(f"{name} {part + 1} of {ATTACKS[name][1]}: {counts}", file=sys.stderr, flush=True)
        shutil.rmtree(folder / f"{name}-{part}", ignore_errors=True)
    return total


def _run_part(name: str, share: Share) -> None:
    """In the forked process: count, write the counts down, end. What libraries print goes to a file."""
    code = 1
    try:
        Tally.told = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        output = os.open(share.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()
        ATTACKS[name][0](share).save(share.folder / "tally.json")
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _result(place: Path, name: str, status: int) -> Tally:
    if status == 0:
        return Tally.load(place / "tally.json")
    tally = Tally()
    crumb = place / "breadcrumb"
    where = crumb.read_text(encoding="utf-8") if crumb.exists() else ""
    output = (place / "output").read_text(encoding="utf-8", errors="replace").strip()
    problem = f"status {status}: {' / '.join(output.splitlines()[-3:])}"
    tally.failed(f"{name}: the process itself", problem, where, output)
    return tally


if __name__ == "__main__":
    sys.exit(main())
