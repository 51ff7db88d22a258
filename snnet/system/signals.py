"""How a command is ended from outside: by Ctrl-C, SIGTERM or a terminal that closes; at once, and nothing is left."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time

TYPE_CHECKING = False  # a command imports this before anything else: not even typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_LINES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_CHILD_WAIT = 5.0  # seconds for child processes to end by themselves
_CHILD_TURN = 0.2  # seconds until they are told again

_owner: int | None = None  # the process that the signals end; forked workers are others
_actions: list[Callable[[], object]] = []
_holders = 0  # blocks of `held` that this process is in
_late: int | None = None  # the signal that came meanwhile


def end_on_signals() -> None:
    """Let these signals end this process: one line on stderr, and 128 + the signal's number as exit status.

    Child processes are ended, and what :func:`afterwards` holds is done. The handler ends the process itself: a
    KeyboardInterrupt is a traceback where it meets an import, and is lost where a library catches it. A signal that is
    ignored, as under ``nohup``, stays ignored. All are ignored when the command is done and Python takes itself apart,
    so that the exit status is the command's.
    """
    global _owner
    _owner = os.getpid()
    atexit.register(_ignore)  # registered first, so called last, just before Python forgets handlers
    for name in _LINES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


@contextlib.contextmanager
def afterwards(action: Callable[[], object]) -> Iterator[None]:
    """Do ``action`` behind the block, however it ends: also where :func:`end_on_signals` ends the process in it.

    In that case it may be done twice.
    """
    _actions.append(action)
    try:
        yield
    finally:
        action()
        _actions.remove(action)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a signal that comes in the block end this process behind it; a second one ends it at once.

    Start processes in it: :mod:`multiprocessing` knows of a process only a moment after its fork, and one that it does
    not know of would be left running.
    """
    global _holders
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if _late is not None and _holders == 0 and os.getpid() == _owner:
            signal.raise_signal(_late)


def begin_worker() -> None:
    """For a process of :mod:`multiprocessing`: leave Ctrl-C to its parent, and end on SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_worker)


def follow_parent(parent: int, number: int) -> None:
    """On Linux: let the signal ``number`` come when ``parent``, which has forked this process, is killed.

    It also comes when the thread ends that has forked it.
    """
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)
    if os.getppid() != parent:  # it was killed before
        os._exit(1)


def _ignore() -> None:
    for name in _LINES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_worker(number: int, frame: FrameType | None) -> None:
    import multiprocessing.util
    import shutil

    signal.signal(number, signal.SIG_IGN)  # one is enough
    # Where it hands tensors over; a process that ends in the usual way deletes it, too.
    shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)
    os._exit(0)


def _end(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _owner:  # a worker that was forked: its parent ends it
        if number == signal.SIGTERM:
            os._exit(128 + number)
        return
    global _late
    if _holders and _late is None:
        _late = number
        return
    _ignore()  # one is enough
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error where a worker dies
    with contextlib.suppress(Exception):
        _end_children()
    for action in reversed(_actions):
        with contextlib.suppress(Exception):
            action()
    line = _LINES[signal.Signals(number).name] + "\n"
    with contextlib.suppress(OSError):
        # Not through sys.stderr, which this handler may have interrupted. A bar on a terminal has no line end.
        os.write(2, ("\n" + line if os.isatty(2) else line).encode())
    os._exit(128 + number)


def _end_children() -> None:
    if "multiprocessing" not in sys.modules:
        return
    children = sys.modules["multiprocessing"].active_children()
    deadline = time.monotonic() + _CHILD_WAIT
    while children and time.monotonic() < deadline:
        for child in children:
            child.terminate()  # again and again: Python forgets a signal that comes while it is being forked
        children[0].join(_CHILD_TURN)
        children = [child for child in children if child.is_alive()]
    for child in children:
        child.kill()
        child.join(_CHILD_WAIT)
