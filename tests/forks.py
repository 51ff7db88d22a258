"""Programs that tests run in forked processes, which have what the test process has imported: torch takes seconds."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch._dynamo  # noqa: F401  as every optimiser does, which takes seconds

from tests.paths import ROOT


class Answer(NamedTuple):
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


def forked(program: Callable[[], Any], environment: Mapping[str, str] | None = None) -> Answer:
    """Run ``program`` in the root of the repository, with more in its environment; what it returns is its status."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        pid = os.fork()
        if pid == 0:
            _end_with(program, environment or {}, stdout.fileno(), stderr.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
        return Answer(code, *texts)


def run_script(path: Path, *arguments: str) -> Answer:
    """``python PATH ARGUMENTS`` in the root of the repository."""

    def program() -> None:
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")

    return forked(program)


def run_pytest(*arguments: str) -> Answer:
    """``python -m pytest ARGUMENTS`` in the root of the repository."""
    return forked(lambda: pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]))


def _end_with(program: Callable[[], Any], environment: Mapping[str, str], stdout: int, stderr: int) -> None:
    """Be the program, and end without going back into the test."""
    code: Any = 1
    try:
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (stdout, 1), (stderr, 2)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        for name in [name for name in os.environ if name.startswith("PYTEST_")]:
            del os.environ[name]
        os.environ.update(environment)
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        code = program()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
