"""Start commands of the package without the seconds that importing torch takes.

A process that has imported everything forks for every command. The child runs the command's module as ``__main__``,
from its first line, in a session of its own, and ends as any interpreter does. :class:`Launcher` is the other side.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.paths import ROOT

MODULES = ("snnet.train", "snnet.evaluate", "snnet.extract", "snnet.label", "snnet.search", "snnet.report")
LATER = "torch._dynamo"  # every optimiser imports it, which takes as long as torch


@dataclass(frozen=True)
class Started:
    """A command that runs, or has run; ``log`` is what it writes to stderr."""

    pid: int
    log: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="backslashreplace")


class Launcher:
    """Starts commands and hears of their ends."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hard.launcher"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._codes: dict[int, int] = {}
        self._buffer = b""
        self._started: list[int] = []

    def start(self, module: str, arguments: list[str], log: Path, hook: str | None = None) -> Started:
        """Start ``python -m MODULE ARGUMENTS``; ``hook`` is Python code that the process runs before."""
        request = {"module": module, "arguments": arguments, "log": str(log), "hook": hook}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while not self._started:
            self._hear(60)
        return Started(self._started.pop(), log)

    def wait(self, started: Started, seconds: float) -> int | None:
        """The exit code (a signal's is negative), or None where it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while started.pid not in self._codes:
            if time.monotonic() > end:
                return None
            self._hear(min(0.05, seconds))
        return self._codes[started.pid]

    def run(
        self, module: str, arguments: list[str], log: Path, hook: str | None = None, seconds: float = 120
    ) -> Any:
        """Start and wait; kills what does not end, whose code is then None."""
        started = self.start(module, arguments, log, hook)
        code = self.wait(started, seconds)
        end_session(started.pid)
        return code

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _hear(self, seconds: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], seconds)[0]:
            return
        part = os.read(pipe, 1 << 16)
        if not part:
            raise RuntimeError("the launcher has ended")
        *lines, self._buffer = (self._buffer + part).split(b"\n")
        for line in lines:
            word, pid, *code = line.split()
            if word == b"started":
                self._started.append(int(pid))
            else:
                self._codes[int(pid)] = int(code[0])


def _end_as_interpreter(request: dict[str, Any]) -> None:
    """Be the command, and end without going back into what this process was."""
    code: Any = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # this process may have others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _become(request)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def session_members(session: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = (
                    Path(f"/proc/{entry}/stat")
                    .read_text(encoding="utf-8", errors="replace")
                    .rpartition(")")[2]
                )
            except OSError:
                continue
            state, _, _, own = fields.split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(entry))
    return found


def end_session(session: int) -> None:
    """Kill every process of a session, which this program has started."""
    for pid in session_members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _serve() -> dict[str, Any] | None:
    """Fork for every request; the request in the child, None where the other side has gone."""
    buffer = b""
    running: set[int] = set()
    while True:
        ready = select.select([0], [], [], 0.005)[0]
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            running.discard(pid)
            os.write(1, b"ended %d %d\n" % (pid, os.waitstatus_to_exitcode(status)))
        if not ready:
            continue
        part = os.read(0, 1 << 16)
        if not part:
            for pid in running:
                end_session(pid)
            return None
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                return dict(json.loads(line))
            running.add(pid)
            os.write(1, b"started %d\n" % pid)


def _become(request: dict[str, Any]) -> None:
    """Be the command, from here to the end of the process."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    sys.argv = [request["module"], *request["arguments"]]
    if request["hook"]:
        exec(request["hook"], {})
    sys.modules.pop(request["module"], None)  # its file is run, as for a process of its own
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in (*MODULES, LATER):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that this process shares with it
    wanted = _serve()
    if wanted is not None:
        _become(wanted)
