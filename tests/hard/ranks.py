"""Trainings over several processes, one of which is killed (SIGKILL) at a random moment.

The others end, each with one line, and leave a checkpoint that any number of processes goes on from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from tests.forks import Program, end_session, start_processes
from tests.hard.runs import IMPORTS, SECONDS, checkpoint_problem, last_line, train_arguments
from tests.hard.share import Share
from tests.hard.tally import Tally
from tests.snnet.tiny_run import GONE, draw_market

KILLS = 10  # at full size
TIMEOUT = 30  # seconds of silence in a step
KIND = "kill of one of several processes"


def attack(share: Share) -> Tally:
    tally = Tally()
    data = draw_market(share.folder / "data", identities=8)
    lengths: dict[int, float] = {}  # of a whole run, by its number of processes
    for number in share.numbers(KILLS):
        tally.tried(KIND)
        _kill_one(share, number, data, lengths, tally)
    return tally


def _kill_one(share: Share, number: int, data: Path, lengths: dict[int, float], tally: Tally) -> None:
    folder, random = share.folder / "run", share.random(8, number)
    shutil.rmtree(folder, ignore_errors=True)
    count, then = 2 + number % 2, (1, 3, 2)[number % 3]
    options = {"batch_size": 12, "epochs": 4, "bn_groups": 6}
    words = [*train_arguments(data, folder, **options), "--timeout", str(TIMEOUT)]
    where = f"seed {share.seed} number {number}: of {count} processes, then {then}"
    problem = None
    if count not in lengths:
        began = time.monotonic()
        problem = _ended(_start(count, words, share.folder), {0})
        lengths[count] = time.monotonic() - began
        shutil.rmtree(folder, ignore_errors=True)
    if problem is None:
        started = _start(count, words, share.folder)
        time.sleep(float(random.uniform(0.2, 1)) * lengths[count])
        killed = int(random.integers(count))
        with contextlib.suppress(ProcessLookupError):
            os.kill(started[killed].pid, signal.SIGKILL)
        others = [process for rank, process in enumerate(started) if rank != killed]
        problem = _ended(others, {0, 1}) or _told(others) or checkpoint_problem(folder)
        started[killed].wait(SECONDS)
        where += f", rank {killed} killed"
    if problem is None:
        again = ["--resume", str(folder), "--quiet"] if (folder / "checkpoint.pt").exists() else words
        started = _start(then, again, share.folder)
        problem = _ended(started, {0})
    if problem is None and not (folder / "results.json").exists():
        problem = "the run that went on has no results"
    if problem is not None:
        logs = sorted(share.folder.glob("rank-*.log"))
        tally.failed(KIND, problem, where, "\n".join(log.read_text(errors="replace") for log in logs))


def _start(count: int, words: list[str], folder: Path) -> list[Program]:
    logs = [folder / f"rank-{rank}.log" for rank in range(count)]
    return start_processes(count, "-m", "snnet.train", *words, imports=IMPORTS, logs=logs)


def _ended(processes: list[Program], codes: set[int]) -> str | None:
    """What is wrong with how they end; those that do not are killed."""
    problem = None
    for process in processes:
        code = process.wait(SECONDS + TIMEOUT)
        end_session(process.pid)
        if code not in codes:
            hangs = f"did not end in {SECONDS + TIMEOUT:.0f} s"
            problem = hangs if code is None else f"exit {code}: {last_line(process.text())}"
    return problem


def _told(processes: list[Program]) -> str | None:
    """What is wrong with what the others say: nothing, or one line."""
    for process in processes:
        lines = [line for line in process.text().splitlines() if "Warning" not in line and line[:1] != " "]
        told = [line.partition(": ")[2] if line[:5] == "rank " else line for line in lines]
        told = [line.partition(" (")[0] for line in told]  # without the error of the connection
        if told not in ([], [GONE.strip()]):
            return f"the others say: {' / '.join(lines[-3:])}"
    return None
