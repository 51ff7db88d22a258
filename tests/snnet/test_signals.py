"""Ctrl-C, SIGTERM and a terminal that closes end a command at once: one line, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snnet.data import build_dataset, decode_images, extraction_loader, training_loader
from snnet.synthetic import writing
from snnet.system.signals import end_on_signals
from tests.forks import session_members
from tests.snnet.tiny_run import environment

# Each ends itself in a moment at which Ctrl-C is awkward.
MOMENTS = {
    "in an import": "import hostile",
    "where a library catches everything": (
        "try:\n os.kill(os.getpid(), number)\nexcept BaseException:\n pass\n"
        "try:\n os.kill(os.getpid(), number)\nexcept BaseException:\n pass"
    ),
    "in a callback": (
        "import weakref\nclass A: pass\na = A()\n"
        "r = weakref.ref(a, lambda _: os.kill(os.getpid(), number))\ndel a"
    ),
    "in a write": (
        "from pathlib import Path; from snnet.files.outputs import write_atomically\n"
        "def write(file):\n file.write(b'half'); os.kill(os.getpid(), number)\n"
        "write_atomically(Path('a.npz'), write)"
    ),
    "in the folder of a run": (
        "from snnet.training.run_folder import new_run_folder\n"
        "with new_run_folder('runs/x'):\n os.kill(os.getpid(), number)"
    ),
    "when a folder is made": (
        "from pathlib import Path; from snnet.training.run_folder import new_run_folder\n"
        "mkdir = Path.mkdir\ndef signalled(path):\n mkdir(path); os.kill(os.getpid(), number)\n"
        "Path.mkdir = signalled\nwith new_run_folder('runs/x'):\n print('went on')"
    ),
    "when a folder is locked": (
        "from snnet.training import run_folder; hold = run_folder.hold\n"
        "def signalled(file):\n os.kill(os.getpid(), number); hold(file)\n"
        "run_folder.hold = signalled\nwith run_folder.new_run_folder('runs/x'):\n print('went on')"
    ),
    "with worker processes": (
        "import multiprocessing as m, time; from snnet.system.signals import begin_worker\n"
        "from snnet.files.drafts import draft_folder; from pathlib import Path\n"
        "context = m.get_context('fork'); ready = context.Event()\n"
        "def work():\n begin_worker(); m.util.get_temp_dir(); ready.set(); time.sleep(600)\n"
        "with draft_folder(Path('.')) as folder:\n"
        " w = context.Process(target=work, daemon=True); w.start(); ready.wait()\n"
        " print(w.pid, flush=True); os.killpg(0, number); time.sleep(600)"
    ),
}


CASES = [(signal.SIGINT, "interrupted", moment) for moment in MOMENTS]
CASES += [(signal.SIGTERM, "terminated", moment) for moment in ("in a write", "with worker processes")]
CASES += [(signal.SIGHUP, "hung up", "in the folder of a run")]


@pytest.mark.parametrize(("number", "line", "moment"), CASES)
def test_a_signal_ends_a_command(number: signal.Signals, line: str, moment: str, tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(
        "import os\ntry:\n os.kill(os.getpid(), number)\nfinally:\n raise ImportError"
    )
    (tmp_path / "tmp").mkdir()
    start = (
        "import builtins, os; from snnet.system.signals import end_on_signals\n"
        f"end_on_signals(); builtins.number = {int(number)}\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", start + MOMENTS[moment] + "\nprint('went on')"],
        env={**environment(), "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (128 + number, line + "\n")
    assert "went on" not in process.stdout
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["hostile.py", "tmp"]
    if "worker" in moment:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process.stdout), 0)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from snnet.system.signals import end_on_signals; end_on_signals(); os.kill(os.getpid(), signal.SIGHUP)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


@pytest.mark.parametrize("status", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_done_ends_as_it_would(number: signal.Signals, status: int) -> None:
    """The signal comes when Python takes modules apart, and has no handlers any more."""
    code = (
        "import os, sys; from snnet.system.signals import end_on_signals; end_on_signals()\n"
        f"class Last:\n def __del__(self, kill=os.kill, own=os.getpid()):\n  kill(own, {int(number)})\n"
        f"last = Last(); sys.exit({status})"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (status, b"", b"")


def extract(data: Path, output: Path) -> None:
    images = decode_images(build_dataset("market1501", data).train)
    list(extraction_loader(images, height=32, width=16, batch_size=8, workers=2))


def train(data: Path, output: Path) -> None:
    images = decode_images(build_dataset("market1501", data).train)
    list(training_loader(images, height=32, width=16, batch_size=8, workers=2, seed=0))


def draw(data: Path, output: Path) -> None:
    writing._processors = lambda: 2
    writing.generate(output)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", [extract, train, draw])
def test_a_signal_while_a_worker_is_forked_leaves_none(
    work: Callable[[Path, Path], None], number: signal.Signals, nth: int, tiny_market: Path, tmp_path: Path
) -> None:
    """It comes when the ``nth`` worker runs and is in nobody's list yet."""
    command = os.fork()
    if command == 0:
        try:
            os.setsid()
            _signalled_in_fork(number, nth)
            work(tiny_market, tmp_path)
        finally:
            os._exit(1)
    begun = time.monotonic()
    status = os.waitpid(command, 0)[1]
    assert session_members(command) == [], f"{time.monotonic() - begun:.0f} s after the start"
    assert (os.waitstatus_to_exitcode(status), list(tmp_path.iterdir())) == (128 + number, [])


def _signalled_in_fork(number: signal.Signals, nth: int) -> None:
    fork, forks = os.fork, []

    def forked() -> int:
        pid = fork()
        forks.append(pid)
        if pid and len(forks) == nth:
            os.kill(os.getpid(), number)
        return pid

    os.fork = forked
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(number, signal.SIG_DFL)  # pytest may have been started with nohup
    end_on_signals()
