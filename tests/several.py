"""A command in several processes that meet over gloo, as ``torchrun`` starts them, without importing torch anew."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from tests.forks import Answer, training

# The process that was forked of one with torch forks once more for every rank.
_RANKS = """
import contextlib, os, runpy, sys, traceback
pids = []
for rank in range({count}):
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="{count}", MASTER_ADDR="127.0.0.1",
                          MASTER_PORT="{port}")
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{{name}}-{{rank}}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv[:] = [{module!r}, *{words!r}]
        rank, code = rank, 1
        try:
            exec({hook!r})
            if {module!r}.endswith(".py"):
                sys.path.insert(0, os.path.dirname({module!r}))
                runpy.run_path({module!r}, run_name="__main__")
            else:
                runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(code)
    pids.append(pid)
for rank, pid in enumerate(pids):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    open(f"{folder}/code-{{rank}}", "w").write(str(code))
"""


def run_processes(count: int, module: str, words: list[str], hook: str = "") -> list[Answer]:
    """``python -m MODULE WORDS``, or ``python FILE.py WORDS``, in ``count`` processes.

    ``hook`` is code that each runs before, with its ``rank``.
    """
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        program = _RANKS.format(count=count, port=port, folder=folder, module=module, words=words, hook=hook)
        answer = training(program)
        assert answer.returncode == 0, answer.stderr
        read = [
            [Path(folder, f"{name}-{rank}").read_text() for name in ("code", "out", "err")]
            for rank in range(count)
        ]
        return [Answer(int(code), out, err) for code, out, err in read]
