"""Programs that tests run in processes which need not import torch, as that takes seconds: they are forked.

Not from the test process: what has been through a backward pass of torch's can be forked no more. A process that has
imported torch, or what an optimiser imports too, and nothing of this repository, waits for requests.
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
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.paths import ROOT


class Answer(NamedTuple):
    """How a program ended; a signal's code is negative."""

    returncode: int
    stdout: str
    stderr: str


def run_script(path: Path, *arguments: str) -> Answer:
    """``python PATH ARGUMENTS`` in the root of the repository."""
    words = [str(path), *arguments]
    start = f"import runpy, sys\nsys.argv[:] = {words!r}\nsys.path.insert(0, {str(path.parent)!r})\n"
    return training(f"{start}runpy.run_path({str(path)!r}, run_name='__main__')")


def environment(**more: str) -> dict[str, str]:
    """For a process of a test: the same packages, one thread, nothing of pytest's own, and ``more``."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**here, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


def run_pytest(*words: str, **more: str) -> tuple[int, str]:
    """``python -P -m pytest WORDS`` in the root of the repository, with ``more`` in its environment.

    Gives how many tests passed, 0 where one failed, and what was printed.
    """
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    answer = python("-P", "-m", "pytest", *quiet, *words, environment=environment(**more))
    passed = re.search(r"(\d+) passed", answer.stdout) if answer.returncode == 0 else None
    return int(passed[1]) if passed else 0, answer.stdout + answer.stderr


def training(program: str) -> Answer:
    """``python -c PROGRAM`` in the root of the repository, of which optimisers and compiled steps are a part."""
    return python("-c", program, environment=environment(), imports="torch._dynamo")


def python(
    *words: str, environment: Mapping[str, str], folder: Path = ROOT, imports: str = "torch"
) -> Answer:
    """``python WORDS``, which begin with -c or -m, perhaps behind -P, in this environment.

    Forked from a process that has imported ``imports``.
    """
    server = _server(imports)
    assert server.stdin is not None and server.stdout is not None

    def run(stdout: str, stderr: str) -> int:
        request = [list(words), dict(environment), str(folder), stdout, stderr]
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    return _answer(run)


def _answer(run: Callable[[str, str], int]) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        code = run(*map(str, files))
        return Answer(code, *(file.read_text() for file in files))


def _end_with(
    program: Callable[[], Any], environment: Mapping[str, str], folder: Path | str, stdout: str, stderr: str
) -> None:
    """Be the program, and end without going back into what this process was."""
    code: Any = 1
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        files = (os.open(os.devnull, os.O_RDONLY), os.open(stdout, flags), os.open(stderr, flags))
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        code = program() or 0
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


@functools.cache
def _server(imports: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.forks", imports],
        env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def _serve() -> None:
    """Answer requests until the test process has gone."""
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            words, environment, folder, stdout, stderr = json.loads(line)
            _end_with(functools.partial(_run, words, environment), environment, folder, stdout, stderr)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.buffer.write(b"%d\n" % code)
        sys.stdout.buffer.flush()


def _run(words: list[str], environment: Mapping[str, str]) -> None:
    safe = words[0] == "-P"
    kind, what, *arguments = words[safe:]
    sys.path.remove(str(ROOT))  # as this process was started
    named = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = named if safe else [os.getcwd(), *named]
    sys.argv = [what, *arguments]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    assert torch.get_num_threads() == 1  # what has no threads can be forked
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that this process shares with it
    _serve()
