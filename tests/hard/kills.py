"""Trainings that are killed (SIGKILL): at random moments, and at each file operation.

After a kill the folder can be resumed and ends as an unbroken run, or says in one line what is missing, and a start
afresh ends so. Nothing is half-written, and after the next start nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from tests.forks import end_session
from tests.hard.runs import (
    SECONDS,
    Unbroken,
    checkpoint_problem,
    last_line,
    run_command,
    start_command,
    train_arguments,
)
from tests.hard.share import Share
from tests.hard.tally import Tally

RANDOM_KILLS = 50  # at full size

# Counts what a process does to files below a folder, and kills it before the k-th operation; k = 0 counts only.
# fsync raises no audit event. Where `cut` is set, a kill at an fsync takes half of the file with it, as a power
# failure does before the bytes reach the disk.
COUNTING = """
import os, signal, sys
FOLDER, AT, CUT, COUNTS = {folder!r}, {at}, {cut}, {counts!r}
done = [0]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
          "fcntl.flock", "fcntl.lockf", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp")
fsync = os.fsync
def count(what, file=None):
    done[0] += 1
    if COUNTS:
        with_counts = os.open(COUNTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(with_counts, (what + "\\n").encode())
        os.close(with_counts)
    if done[0] == AT:
        if file is not None and CUT:
            try:
                os.ftruncate(file, os.fstat(file).st_size // 2)
            except OSError:
                pass
        os.kill(os.getpid(), signal.SIGKILL)
def hook(event, arguments):
    if event in EVENTS:
        paths = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes))]
        if any(path.startswith(FOLDER) for path in paths) or event.startswith("fcntl."):
            if event == "open" and isinstance(arguments[1], str) and not set(arguments[1]) & set("wax+"):
                return
            count(event)
def counted_fsync(file):
    count("fsync", file if isinstance(file, int) else file.fileno())
    return fsync(file)
os.fsync = counted_fsync
sys.addaudithook(hook)
"""


def attack(share: Share) -> Tally:
    """Both kinds of kill."""
    tally, unbroken = Tally(), Unbroken(share.folder)
    at_random(share, unbroken, tally)
    at_operations(share, unbroken, tally)
    return tally


def at_random(share: Share, unbroken: Unbroken, tally: Tally) -> None:
    """Kill at moments spread over the whole of a run."""
    folder, log = share.folder / "killed", share.folder / "killed.log"
    length = _length(unbroken, folder, log)
    for number in share.numbers(RANDOM_KILLS):
        shutil.rmtree(folder, ignore_errors=True)
        moment = float(share.random(6, number).uniform(0, length))
        started = start_command("snnet.train", train_arguments(unbroken.data, folder), log)
        time.sleep(moment)
        _kill(started.pid)
        started.wait(SECONDS)
        end_session(started.pid)
        where = f"seed {share.seed} kill {number}"
        _judge(unbroken, folder, log, tally, "kill at a random moment", where)


def at_operations(share: Share, unbroken: Unbroken, tally: Tally) -> None:
    """Kill before each operation on the run's files, and with half a file lost before each fsync."""
    folder, log = share.folder / "killed", share.folder / "killed.log"
    counts = share.folder / "counts"
    shutil.rmtree(folder, ignore_errors=True)
    hook = COUNTING.format(folder=str(folder), at=0, cut=False, counts=str(counts))
    if run_command("snnet.train", train_arguments(unbroken.data, folder), log, hook) != 0:
        tally.failed("kill at a file operation", f"the counted run fails: {last_line(log.read_text())}", "")
        return
    operations = counts.read_text(encoding="utf-8").split()
    moments = [(at, False) for at in range(1, len(operations) + 1)]
    moments += [(at, True) for at, what in enumerate(operations, start=1) if what == "fsync"]
    for number in share.numbers(len(moments)):
        at, cut = moments[number * len(moments) // share.numbers(len(moments)).stop]
        shutil.rmtree(folder, ignore_errors=True)
        hook = COUNTING.format(folder=str(folder), at=at, cut=cut, counts="")
        code = run_command("snnet.train", train_arguments(unbroken.data, folder), log, hook)
        where = f"operation {at} of {len(operations)} ({operations[at - 1]}{', cut' if cut else ''})"
        kind = "kill at a file operation"
        if code != -signal.SIGKILL:
            tally.tried(kind)
            tally.failed(kind, f"was not killed but ended with {code}: {last_line(log.read_text())}", where)
            continue
        _judge(unbroken, folder, log, tally, kind, where)


def _judge(unbroken: Unbroken, folder: Path, log: Path, tally: Tally, kind: str, where: str) -> None:
    tally.tried(kind)
    problem = checkpoint_problem(folder) or unbroken.resumed_problem(folder, log)
    if problem:
        output = log.read_text(encoding="utf-8", errors="backslashreplace")
        tally.failed(kind, problem.replace(str(folder), "FOLDER"), where, output)


def _length(unbroken: Unbroken, folder: Path, log: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    run_command("snnet.train", train_arguments(unbroken.data, folder), log)
    return time.monotonic() - started


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
