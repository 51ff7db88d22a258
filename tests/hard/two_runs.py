"""Two trainings on one folder, and two processes that write one checkpoint.

Of two trainings that are started into one folder, or one of which resumes what the other still writes, one ends as if
it were alone and the other says in one line who has the folder. A run that was killed holds it no longer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import torch
import yaml

from snnet.errors import UserError
from snnet.training.checkpoint import load_checkpoint, save_checkpoint
from tests.forks import end_session
from tests.hard.formats import same
from tests.hard.runs import (
    SECONDS,
    Unbroken,
    error_problem,
    files,
    last_line,
    outcome,
    start_command,
    train_arguments,
)
from tests.hard.share import Share
from tests.hard.tally import Tally

ROUNDS = 12  # at full size
LOADS = 2000  # of a checkpoint that two processes write, at full size


def attack(share: Share) -> Tally:
    """Rounds of two trainings, then two writers of one checkpoint."""
    tally, unbroken = Tally(), Unbroken(share.folder)
    for number in share.numbers(ROUNDS):
        two_trainings(share, unbroken, tally, number)
    two_writers(share, tally)
    return tally


def two_trainings(share: Share, unbroken: Unbroken, tally: Tally, number: int) -> None:
    """Seeds 0 and 1, or seed 0 and a resume of it, a random moment apart; every third round the first is killed."""
    random = share.random(8, number)
    folder, resume, killed = share.folder / "shared", number % 2 == 1, number % 3 == 2
    logs = [share.folder / f"shared{i}.log" for i in (0, 1)]
    shutil.rmtree(folder, ignore_errors=True)
    first = start_command("snnet.train", train_arguments(unbroken.data, folder), logs[0])
    if resume:
        _wait_for(folder / "config.yaml")
    time.sleep(float(random.uniform(0, 0.5)))
    if killed:
        end_session(first.pid)  # it may have ended
        first.wait(SECONDS)
        kind = "start after a killed run"
        tally.tried(kind)
        problem = unbroken.resumed_problem(folder, logs[1])
        if problem:
            where = f"seed {share.seed} round {number}"
            tally.failed(kind, problem.replace(str(folder), "FOLDER"), where, _printed(logs))
        return
    arguments = (
        ["--resume", str(folder), "--quiet"] if resume else train_arguments(unbroken.data, folder, seed=1)
    )
    second = start_command("snnet.train", arguments, logs[1])
    codes = [started.wait(SECONDS) for started in (first, second)]
    for started in (first, second):
        end_session(started.pid)
    kind = "two trainings on one folder"
    tally.tried(kind)
    problem = _problem(codes, [log.read_text(errors="replace") for log in logs], folder, unbroken, resume)
    if problem:
        where = f"seed {share.seed} round {number}, resume {resume}"
        tally.failed(kind, problem.replace(str(folder), "FOLDER"), where, _printed(logs))


def _printed(logs: list[Path]) -> str:
    texts = [log.read_text(encoding="utf-8", errors="backslashreplace") for log in logs if log.exists()]
    return "\nand the other:\n".join(texts)


def _problem(
    codes: list[int | None], texts: list[str], folder: Path, unbroken: Unbroken, resume: bool
) -> str | None:
    if codes == [0, 0] and resume:  # the second may have come when the first was done
        return None if same(outcome(folder), unbroken.outcome) else "both end well, with another outcome"
    if codes.count(0) != 1:
        return f"exits {codes}: {last_line(texts[0])} / {last_line(texts[1])}"
    loser = 1 - codes.index(0)
    problem = error_problem(codes[loser], texts[loser])
    if problem:
        return f"the one that gives way: {problem}"
    seeds = {
        yaml.safe_load((folder / "config.yaml").read_text())["seed"],
        json.loads((folder / "results.json").read_text())["seed"],
        load_checkpoint(folder)["config"]["seed"],
    }
    wanted = {0 if resume else 1 - loser}
    if seeds != wanted:
        return f"files of seeds {sorted(seeds)}, where {sorted(wanted)} ran"
    if wanted == {0} and not same(outcome(folder), unbroken.outcome):
        return "another outcome than that of a run alone"
    left = files(folder) - unbroken.files
    return f"left behind: {', '.join(sorted(left))}" if left else None


def _wait_for(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.005)


def two_writers(share: Share, tally: Tally) -> None:
    """Every load of a checkpoint that two processes write gives what one of them wrote, whole."""
    path, kind = share.folder / "written.pt", "checkpoint that two processes write"
    loads = share.count(LOADS)
    _write(path, 0)
    writers = [_writer(path, value) for value in (1, 2)]
    try:
        for number in range(loads):
            tally.tried(kind)
            try:
                head = load_checkpoint(path)["head"]
            except UserError as error:
                tally.failed(kind, f"refused: {error}", f"load {number}")
                continue
            if len({int(value) for tensor in head.values() for value in tensor.unique()}) != 1:
                tally.failed(kind, "mixed content was used silently", f"load {number}")
    finally:
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _write(path: Path, value: int) -> None:
    head = {f"part{i}": torch.full((2000 + 3000 * value,), float(value)) for i in range(6)}
    save_checkpoint(
        path, model={}, optimizer={}, head=head, config={}, rng={}, before={}, metrics=[], images=0, torch="2"
    )


def _writer(path: Path, value: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                try:
                    _write(path, value)
                except UserError:
                    continue
        finally:
            os._exit(0)
    return pid
