"""Programs that tests run in processes which need not import torch, as that takes seconds: they are forked.

Not from the test process: what has been through a backward pass of torch's can be forked no more. A server, which has
imported what a program will import, forks for each one. It has nothing of this repository but what is named so: the
package reads its environment when it is imported. Each program runs in a session of its own, which ends with the tests.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import re
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.paths import ROOT

TORCH = ("torch",)
_PATHS = {"PYTHONPATH", "PYTHONSAFEPATH"}  # of the environment; a program gets its own
TRAINING = ("torch", "torch._dynamo")  # every optimiser imports the second, which takes as long as the first


class Answer(NamedTuple):
    """How a program ended; a signal's code is negative."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Program:
    """A program that was started, and the files that it prints to, in a ``folder`` made for them if there is no log."""

    server: _Server
    pid: int
    stdout: Path
    stderr: Path
    folder: Path | None

    def wait(self, seconds: float = 3600) -> int | None:
        """Its exit code (a signal's is negative), or None where it still runs after so many seconds."""
        return self.server.wait(self.pid, seconds)

    def text(self) -> str:
        """What it has printed to stderr."""
        return self.stderr.read_text(encoding="utf-8", errors="backslashreplace")

    def answer(self) -> Answer:
        """Wait for its end and read what it has printed."""
        try:
            try:
                code = self.wait()
            finally:
                end_session(self.pid)
            found = [file.read_text() for file in (self.stdout, self.stderr)]
        finally:
            if self.folder:
                shutil.rmtree(self.folder)
        assert code is not None, f"still runs: {found}"
        return Answer(code, *found)


def environment_of_tests(**more: str) -> dict[str, str]:
    """For a process of a test: the same packages, one thread, nothing of pytest's own, and ``more``."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**here, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


def start(
    *words: str,
    environment: Mapping[str, str] | None = None,
    folder: Path = ROOT,
    imports: Sequence[str] = TORCH,
    hook: str = "",
    log: Path | None = None,
) -> Program:
    """Start ``python WORDS``, which begin with -c, -m or the path of a script, perhaps behind -P, in ``folder``.

    It is forked from a server that has imported ``imports``, and runs the statements ``hook`` first. With ``log``
    stderr goes there, and stdout nowhere.
    """
    made = None if log else Path(tempfile.mkdtemp(prefix="snnet-forks-"))
    files = (made / "stdout", made / "stderr") if made else (Path(os.devnull), log)
    here = environment_of_tests() if environment is None else dict(environment)
    server = _server(tuple(imports), os.getpid())
    pid = server.start([list(words), here, str(folder), *map(str, files), hook])
    return Program(server, pid, *files, made)


def python(*words: str, **options: Any) -> Answer:
    """How ``python WORDS`` ends; the options are those of :func:`start`."""
    return start(*words, **options).answer()


def run_pytest(*words: str, **more: str) -> tuple[int, str]:
    """``python -P -m pytest WORDS`` in the root of the repository, with ``more`` in its environment.

    Gives how many tests passed, 0 where one failed, and what was printed.
    """
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    answer = python("-P", "-m", "pytest", *quiet, *words, environment=environment_of_tests(**more))
    passed = re.search(r"(\d+) passed", answer.stdout) if answer.returncode == 0 else None
    return int(passed[1]) if passed else 0, answer.stdout + answer.stderr


def start_processes(
    count: int, *words: str, hook: str = "", logs: Sequence[Path | None] = (), **options: Any
) -> list[Program]:
    """Start ``python WORDS`` in ``count`` processes that meet over gloo, as ``torchrun`` does.

    ``hook`` finds the number of its process in ``rank``; ``logs`` are those of the processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = []
    for rank, log in enumerate(logs or [None] * count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = environment_of_tests(**{name: str(value) for name, value in (place | meeting).items()})
        found.append(start(*words, environment=own, hook=f"rank = {rank}\n{hook}", log=log, **options))
    return found


def run_processes(count: int, *words: str, hook: str = "") -> list[Answer]:
    """How the programs of :func:`start_processes` end."""
    programs = start_processes(count, *words, hook=hook, imports=TRAINING)
    return [program.answer() for program in programs]


def session_members(session: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        state, _, _, own = text.rpartition(")")[2].split()[:4]
        if int(own) == session and state != "Z":
            found.append(int(entry))
    return found


def end_session(session: int) -> None:
    """Kill every process of a session, which this program has started."""
    for pid in session_members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _Server:
    """The other side of :func:`_serve`: sends requests, and hears of programs that start and end."""

    def __init__(self, imports: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", *imports],
            env={name: os.environ[name] for name in os.environ.keys() - _PATHS} | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._started: list[int] = []
        self._codes: dict[int, int] = {}
        self._unread = b""

    def start(self, request: list[Any]) -> int:
        """The process of a new program."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while not self._started:
            self._hear(60)
        return self._started.pop()

    def wait(self, pid: int, seconds: float) -> int | None:
        """The exit code of a program, or None where it still runs after so many seconds."""
        end = time.monotonic() + seconds
        self._hear(0)
        while pid not in self._codes and (left := end - time.monotonic()) > 0:
            self._hear(left)
        return self._codes.get(pid)

    def _hear(self, seconds: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], seconds)[0]:
            return
        part = os.read(pipe, 1 << 16)
        if not part:
            raise RuntimeError("the server of forked programs has ended")
        *lines, self._unread = (self._unread + part).split(b"\n")
        for line in lines:
            word, pid, *code = line.split()
            if word == b"started":
                self._codes.pop(int(pid), None)  # of an earlier program with this number
                self._started.append(int(pid))
            else:
                self._codes[int(pid)] = int(code[0])


@functools.cache
def _server(imports: tuple[str, ...], process: int) -> _Server:
    """That of ``process``, which is this one: what a process inherits in a fork is not its own."""
    return _Server(imports)


def _serve() -> None:
    """Fork for every request until the test process has gone; then end what still runs."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the test process, whose end is the sign to end
    running: set[int] = set()
    try:
        _fork_for_requests(running)
    finally:
        for pid in running:
            end_session(pid)


def _fork_for_requests(running: set[int]) -> None:
    unread = b""
    while True:
        ready = select.select([0], [], [], 0.005 if running else None)[0]
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            running.remove(ended[0])
            os.write(1, b"ended %d %d\n" % (ended[0], os.waitstatus_to_exitcode(ended[1])))
        if not ready:
            continue
        part = os.read(0, 1 << 16)
        if not part:
            return
        *lines, unread = (unread + part).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _be(*json.loads(line))
            running.add(pid)
            os.write(1, b"started %d\n" % pid)


def _be(
    words: list[str], environment: Mapping[str, str], folder: str, stdout: str, stderr: str, hook: str
) -> None:
    """Be the program, and end without going back into what this process was."""
    code: Any = 1
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # this process may have others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    try:
        files = (
            os.open(os.devnull, os.O_RDONLY),
            os.open(stdout, flags, 0o644),
            os.open(stderr, flags, 0o644),
        )
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        _run(words, environment.get("PYTHONPATH", ""), hook)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)


def _run(words: list[str], path: str, hook: str) -> None:
    safe = words[0] == "-P"
    first, *arguments = words[safe:]
    del sys.path[0]  # this repository, where this process was started
    named = [place for place in path.split(os.pathsep) if place]
    sys.path[:0] = named if safe else [os.getcwd(), *named]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    exec(hook, {})
    if first == "-c":
        sys.argv[:] = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv[:] = arguments
        sys.modules.pop(arguments[0], None)  # its file is run, as for a process of its own
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [first, *arguments]
        if not safe:
            sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    assert torch.get_num_threads() == 1  # what has no threads can be forked
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that this process shares with it
    _serve()
