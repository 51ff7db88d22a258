"""Signals that end a command: SIGINT to it or to its whole group, as Ctrl-C sends it, and SIGTERM.

Whenever one comes, also while the loader's workers run and while the command imports its modules, the command ends
soon with one line, exit status 130 or 143, no traceback and no process left; the checkpoint is whole, and the run can
be continued. A command that had written its output before the signal reached it may exit with 0.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from snnet.files.run_files import RESULTS_FILE
from tests.forks import Program, end_session, session_members
from tests.hard.limits import TICKS, state_and_time
from tests.hard.runs import (
    SECONDS,
    Unbroken,
    checkpoint_problem,
    files,
    last_line,
    start_command,
    train_arguments,
)
from tests.hard.share import Share
from tests.hard.tally import Tally
from tests.paths import ROOT

SIGNALS = 100  # at full size
WAYS = ((signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False))  # True: to the whole group
IMPORTING = 5  # every so-manieth try is a process of its own, met in its imports
RESUMED = 10  # every so-manieth run is continued to its end
END_SECONDS = 30.0  # from the signal to the end; the machine may be busy
WRITTEN = re.compile(
    r"printed|f\.npz|m\.png|features-\w+\.npz|report\.html|[a-z_]+\.png"
)  # by the commands, whole
PRINTS = """
import os
os.dup2(os.open({file!r}, os.O_WRONLY | os.O_CREAT), 1)
"""


def attack(share: Share) -> Tally:
    """Signals at random moments of trainings and searches."""
    tally, unbroken = Tally(), Unbroken(share.folder)
    for number in share.numbers(SIGNALS):
        random = share.random(7, number)
        chosen, group = WAYS[number % len(WAYS)]
        where = f"seed {share.seed} signal {number}, {chosen.name}{' to the group' if group else ''}"
        if number % IMPORTING == 1:
            while_importing(share.folder, unbroken, random, chosen, group, tally, where)
        elif number % IMPORTING == 3:
            while_working(share.folder, unbroken, random, chosen, group, tally, where, number)
        else:
            while_training(share.folder, unbroken, random, chosen, group, tally, where, number)
    return tally


def while_training(
    folder: Path, unbroken: Unbroken, random: np.random.Generator,
    chosen: signal.Signals, group: bool, tally: Tally, where: str, number: int,
) -> None:  # fmt: skip
    """A training with loader workers or without, from its first line on."""
    workers = 2 if number % 2 else 0
    kind = f"signal to a training with {'' if workers else 'no '}workers"
    run, log = folder / "signalled", folder / "signalled.log"
    shutil.rmtree(run, ignore_errors=True)
    arguments = train_arguments(unbroken.data, run, workers=workers)
    started = start_command("snnet.train", arguments, log)
    wait = float(random.uniform(0.02, 1.2 + workers / 4))
    _wait_for_work(started.pid, wait)
    problem = _signalled(started, chosen, group, run / RESULTS_FILE, tally) or checkpoint_problem(run)
    left = files(run) - unbroken.files
    problem = problem or (f"left behind: {', '.join(sorted(left))}" if left else None)
    if problem is None and number % RESUMED == 0 and not (run / "results.json").exists():
        problem = unbroken.resumed_problem(run, log)
    _tell(tally, kind, problem, f"{where} after {wait:.3f} s of CPU: {shlex.join(arguments)}", log)


def while_working(
    folder: Path, unbroken: Unbroken, random: np.random.Generator,
    chosen: signal.Signals, group: bool, tally: Tally, where: str, number: int,
) -> None:  # fmt: skip
    """Another command over the finished run."""
    output, log = folder / "written", folder / "worked.log"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    run, gallery = str(unbroken.folder), str(unbroken.data / "bounding_box_test")
    query = str(unbroken.data / "query")
    commands = {
        "snnet.evaluate": ["--checkpoint", run],
        "snnet.extract": ["--checkpoint", run, "--output", str(output / "f.npz"), "--workers", "2"],
        "snnet.search": [
            "--checkpoint", run, "--gallery", gallery, "--query", query, "--picture", str(output / "m.png"),
            "--feature-cache", str(output / "cache"),
        ],
        "snnet.report": [run, "--output", str(output / "report")],
    }  # fmt: skip
    # What each writes at its end; evaluate prints it.
    last = dict(zip(commands, ("printed", "f.npz", "m.png", "report/report.html"), strict=True))
    module = list(commands)[number // IMPORTING % len(commands)]
    hook = PRINTS.format(file=str(output / "printed")) if module == "snnet.evaluate" else ""
    started = start_command(module, [*commands[module], "--quiet"], log, hook)
    wait = float(random.uniform(0.02, 0.5))
    _wait_for_work(started.pid, wait)
    problem = _signalled(started, chosen, group, output / last[module], tally)
    left = [path.name for path in output.rglob("*") if path.is_file() and not WRITTEN.fullmatch(path.name)]
    problem = problem or (f"left behind: {left}" if left else None)
    where = f"{where} after {wait:.3f} s of CPU: {shlex.join(commands[module])}"
    _tell(tally, f"signal to {module}", problem, where, log)


def while_importing(
    folder: Path, unbroken: Unbroken, random: np.random.Generator,
    chosen: signal.Signals, group: bool, tally: Tally, where: str,
) -> None:  # fmt: skip
    """A command in a process of its own, from its first line to the end of its imports and a little further."""
    run, log = folder / "imported", folder / "imported.log"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "snnet.train", *train_arguments(unbroken.data, run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
    wait = first_line_seconds() + float(random.uniform(0, 3.5))
    _wait_for_work(process.pid, wait)
    late = _send(process.pid, chosen, group, run / RESULTS_FILE)
    try:
        code: int | None = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    problem = _end_problem(code, process.pid, log.read_text(errors="replace"), chosen, late, tally)
    end_session(process.pid)
    process.wait()
    where = f"{where} after {wait:.3f} s of CPU: {shlex.join(command)}"
    _tell(tally, "signal while importing", problem or checkpoint_problem(run), where, log)


_first_line: list[float] = []


def first_line_seconds() -> float:
    """CPU time of a process before the first line of a command runs, which no command can answer for."""
    if not _first_line:
        before = os.times()
        subprocess.run([sys.executable, "-c", "import snnet.errors"], check=True, cwd=ROOT)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        _first_line.append(1.5 * spent + 1.0 / TICKS)
    return _first_line[0]


def _wait_for_work(pid: int, seconds: float) -> None:
    """Until a process has used so much CPU time, which a busy machine does not stretch, or has ended."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        state, used = state_and_time(pid)
        if state == "Z" or used >= seconds:
            return
        time.sleep(0.001)


def _send(pid: int, chosen: signal.Signals, group: bool, output: Path) -> bool:
    """Send the signal to a process that stands still, and say whether its output was there by then, or it had ended."""
    try:
        os.kill(pid, signal.SIGSTOP)
        while state_and_time(pid)[0] not in "TZ":
            time.sleep(0.001)
        late = output.exists() and output.stat().st_size > 0
        (os.killpg if group else os.kill)(pid, chosen)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return True
    return late


def _signalled(
    started: Program, chosen: signal.Signals, group: bool, output: Path, tally: Tally
) -> str | None:
    """Send the signal and say what is wrong with the end."""
    late = started.wait(0) is not None or _send(started.pid, chosen, group, output)
    code = started.wait(END_SECONDS)
    problem = _end_problem(code, started.pid, started.text(), chosen, late, tally)
    end_session(started.pid)
    return problem


def _end_problem(
    code: int | None, session: int, text: str, chosen: signal.Signals, late: bool, tally: Tally
) -> str | None:
    if code is None:
        return f"still runs {END_SECONDS:.0f} s later: {last_line(text)}"
    left = _left(session)
    if left:
        return f"{left} processes are left; exit {code}"
    if code == 0:
        if not late:
            return f"went on to its end, exit 0: {last_line(text)}"
        tally.noted("signal after the end of a command")
        return None if "Traceback" not in text else f"a traceback, exit 0: {last_line(text)}"
    wanted = 130 if chosen == signal.SIGINT else 143
    if code != wanted:
        return f"exit {code}, not {wanted}: {last_line(text)}"
    if "Traceback" in text:
        return f"a traceback, exit {code}: {last_line(text)}"
    lines = [line for line in text.strip().splitlines() if not line.startswith("warning: ")]  # said before
    return None if len(lines) == 1 else f"{len(lines)} lines: {' / '.join(lines)[:160]}"


def _left(session: int) -> int:
    """Processes of the session that do not end within a second of its leader."""
    end = time.monotonic() + 3
    while (found := len(session_members(session))) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _tell(tally: Tally, kind: str, problem: str | None, where: str, log: Path) -> None:
    tally.tried(kind)
    if problem:
        tally.failed(kind, problem, where, log.read_text(encoding="utf-8", errors="backslashreplace"))
