"""Tries in forked processes, whose time and memory are watched from outside."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from snnet.errors import UserError
from tests.hard.limits import limited_memory, state_and_time
from tests.memory import forget_peak, resident_bytes

MEMORY = 1 << 30  # bytes that a try may take beside what the process has
CPU_SECONDS = 10.0
ENDLESS_SECONDS = 30.0  # of CPU time, after which a try is not waited for
IDLE_SECONDS = 60.0  # without any, while nobody keeps it from a processor
LONGEST_MESSAGE = 2000  # characters of an error
TRIES_A_FORK = 25

# "refused" or another word of the try's own, or "failure"; in words; of an exception its traceback
Outcome = tuple[str, str, str]


def outcomes(tries: Sequence[Callable[[], str]]) -> Iterator[Outcome]:
    """Each try's outcome: the word that it returns, "refused" where it raises a UserError of one line, or "failure".

    A failure is any other exception, the end of the process, or more time or memory than the bounds above.
    """
    done = 0
    while done < len(tries):
        for outcome in _forked(tries[done : done + TRIES_A_FORK]):
            done += 1
            yield outcome


def _forked(tries: Sequence[Callable[[], str]]) -> Iterator[Outcome]:
    """The outcomes up to the one that takes the process with it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run_all(tries, writing)
    os.close(writing)
    before, buffer, finished = _memory(pid), b"", 0
    last_used, idle_since = state_and_time(pid)[1], time.monotonic()
    used_before = last_used  # before the try that runs
    try:
        while finished < len(tries):
            if select.select([reading], [], [], 0.02)[0]:
                part = os.read(reading, 1 << 16)
                buffer += part
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    finished, used_before = finished + 1, state_and_time(pid)[1]
                    idle_since = time.monotonic()
                    yield tuple(json.loads(line))
                if not part:
                    if finished < len(tries):
                        yield "failure", f"the process ended by itself (status {os.waitpid(pid, 0)[1]})", ""
                    return
            state, used = state_and_time(pid)
            if state == "R" or used > last_used:  # a busy machine may keep it waiting
                last_used, idle_since = used, time.monotonic()
            for taken, is_over in (
                ("took more than 1 GiB", _memory(pid) - before > MEMORY),
                (f"took more than {ENDLESS_SECONDS:g} s of CPU time", used - used_before > ENDLESS_SECONDS),
                (f"hung for {IDLE_SECONDS:g} s", time.monotonic() - idle_since > IDLE_SECONDS),
            ):
                if is_over:
                    yield "failure", taken, ""
                    return
    finally:
        os.close(reading)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def _run_all(tries: Sequence[Callable[[], str]], pipe: int) -> None:
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        with limited_memory(6 * MEMORY):
            for one in tries:
                os.write(pipe, json.dumps(_outcome(one)).encode() + b"\n")
    finally:
        os._exit(0)


def _outcome(one: Callable[[], str]) -> Outcome:
    forget_peak()
    before, started = resident_bytes("VmHWM"), time.process_time()
    try:
        word, text, trace = one(), "", ""
    except UserError as error:
        word, text, trace = "refused", str(error), ""
        if not one_line(text):
            word, text = "failure", f"not one line: {text[:100]!r}, {len(text)} characters"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        word, trace = "failure", traceback.format_exc()
        text = f"{type(error).__name__} {str(error)[:80]} in {Path(place.filename).name}:{place.lineno}"
    seconds, grown = time.process_time() - started, resident_bytes("VmHWM") - before
    if seconds > CPU_SECONDS:
        return "failure", f"took {seconds:.0f} s of CPU time", trace
    if grown > MEMORY:
        return "failure", f"took {grown / 2**30:.1f} GiB", trace
    return word, text, trace


def one_line(text: str) -> bool:
    """Whether an error is one line that a terminal shows as it is, and of a length that can be read."""
    return text.isprintable() and 0 < len(text) <= LONGEST_MESSAGE
