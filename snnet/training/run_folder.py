"""The folder of a run: one without the files of others, locked for as long as the run writes to it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnet.config.options import OPTIONS
from snnet.config.resolve import load_yaml
from snnet.errors import UserError
from snnet.files.locks import hold, let_go, lock
from snnet.files.outputs import make_folder, naming_folder, remove_empty
from snnet.files.run_files import CHECKPOINT_FILE, CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE
from snnet.files.text import FileFault, parse_json
from snnet.system.signals import afterwards, held
from snnet.training.runlog import read_starts

LOCK_FILE = "run.lock"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_ATTEMPTS = 100  # each is lost only where another process came or went in the same moment


def check_new(folder: Path) -> None:
    """Raise :class:`~snnet.errors.UserError` where a new run in ``folder``, --output-dir, would replace files.

    What a run has left there that was stopped before its first checkpoint may be replaced.
    """
    if has_checkpoint(folder, "--output-dir"):
        raise UserError(
            f"{folder} has the checkpoint of a run: continue it with --resume {shlex.quote(str(folder))}, "
            "or choose another --output-dir"
        )
    names = (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE)
    found = [folder / name for name in names if os.path.lexists(folder / name)]
    if found and not _has_configuration(folder):
        raise UserError(
            f"--output-dir {folder}: {found[0]} is in the way: no run wrote it; move it, or choose another folder"
        )
    if found:
        check_untrained(folder, "choose another --output-dir")


def has_checkpoint(folder: Path, flag: str) -> bool:
    """Whether ``folder``, of ``flag``, has a checkpoint. A link that leads to no file is one too: its disk may be away.

    Raises :class:`~snnet.errors.UserError` where that cannot be told.
    """
    with naming_folder(folder, flag):
        try:
            os.lstat(folder / CHECKPOINT_FILE)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def check_untrained(folder: Path, otherwise: str) -> None:
    """Raise :class:`~snnet.errors.UserError` where the run in ``folder`` must have had a checkpoint, which is gone.

    The error tells to put it back, or to do ``otherwise``. A start from the beginning would replace what else the run
    has written.
    """
    try:
        with open(folder / METRICS_FILE, "rb") as file:
            epochs = sum(1 for _ in file)
    except FileNotFoundError:
        epochs = 0
    except OSError as error:
        raise UserError(f"cannot read {folder / METRICS_FILE}: {error.strerror}") from error
    # What resumes a run is a checkpoint; and the line of an epoch is written after the checkpoint of that epoch.
    saved = max([0, *(start["first_epoch"] for start in read_starts(folder / ENVIRONMENT_FILE))])
    if epochs and epochs >= _first_checkpoint(folder):
        saved = max(saved, epochs)
    if saved or os.path.lexists(folder / RESULTS_FILE):
        what = f"has trained {saved} epoch{'' if saved == 1 else 's'}" if saved else f"has {RESULTS_FILE}"
        raise UserError(f"{folder} has no {CHECKPOINT_FILE}, though it {what}: put it back, or {otherwise}")


def _first_checkpoint(folder: Path) -> int:
    """After how many epochs the run in ``folder`` writes its first checkpoint."""
    values = load_yaml(folder / CONFIG_FILE)
    return min(values.get(name, OPTIONS[name].default) for name in ("checkpoint_every", "epochs"))


def _has_configuration(folder: Path) -> bool:
    """Whether a run's configuration is there, which it writes before all else: it has every option."""
    try:
        return load_yaml(folder / CONFIG_FILE).keys() == OPTIONS.keys() - {"output_dir"}
    except UserError:
        return False


@contextlib.contextmanager
def run_folder(folder: Path, flag: str) -> Iterator[Path]:
    """Make ``folder`` where it is not there, and keep other runs out of it. Behind the block it is deleted if empty.

    Raises :class:`~snnet.errors.UserError`, which names ``flag``, where another run writes to it (which it names too),
    and where it cannot be written to.
    """
    made: list[Path] = []
    with afterwards(lambda: remove_empty(made)), contextlib.ExitStack() as stack:
        with naming_folder(folder, flag):
            for attempt in range(_ATTEMPTS):
                try:
                    make_folder(folder, made)
                    # A signal between the making of the file and the block that deletes it would leave it there.
                    with held():
                        descriptor = _lock(folder / LOCK_FILE, f"{flag} {folder}")
                        stack.enter_context(
                            afterwards(functools.partial(_unlock, folder / LOCK_FILE, descriptor))
                        )
                    break
                except (
                    FileNotFoundError
                ):  # a run that was the first one here has failed, and deleted it again
                    if attempt == _ATTEMPTS - 1:
                        raise
        yield folder


@contextlib.contextmanager
def new_run_folder(stem: str) -> Iterator[Path]:
    """:func:`run_folder` of a folder that was not there: ``stem``, else ``stem-2``, ``stem-3`` ..."""
    made: list[Path] = []
    with afterwards(lambda: remove_empty(made)):
        for number in itertools.count(1):
            folder = Path(stem if number == 1 else f"{stem}-{number}")
            with naming_folder(folder, "the folder"):
                try:
                    make_folder(folder, made, is_new=True)
                    break
                except FileExistsError as error:
                    if error.filename != str(folder):  # one above it is a file
                        raise
                except FileNotFoundError:  # a run that has failed has deleted the one above it
                    if number == _ATTEMPTS:
                        raise
        with run_folder(folder, "the folder"):
            yield folder


def _lock(path: Path, where: str) -> int:
    """Create the lock file and return its descriptor; the file of a run that is dead is replaced."""
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)
        except FileExistsError:
            _remove_if_dead(path, where)
            continue
        # Another process may have taken it for abandoned before it was locked.
        if lock(descriptor) is not False and _is_file(path, descriptor):
            holder = {
                "pid": os.getpid(),
                "host": platform.node(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            hold(descriptor)
            try:
                os.write(descriptor, json.dumps(holder).encode())
            except BaseException:
                _unlock(path, descriptor)
                raise
            return descriptor
        os.close(descriptor)
    raise OSError(f"{LOCK_FILE} changes all the time")


def _unlock(path: Path, descriptor: int) -> None:
    if _is_file(path, descriptor):
        path.unlink()
    let_go(descriptor)


def _remove_if_dead(path: Path, where: str) -> None:
    """Delete the lock file of a run that has died; :class:`~snnet.errors.UserError` where it lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | _NO_FOLLOW)
    except FileNotFoundError:  # the run has just ended
        return
    try:
        free = lock(descriptor)
        content = os.read(descriptor, 4096)
        holder = _holder(content)
        known = free is not None
        if free is None:  # no locks here: what the file says has to do
            free = holder.get("host") == platform.node() and not _is_running(holder.get("pid"))
        if not free:
            raise UserError(_refusal(where, holder, None if known else path))
        if content and not holder:
            raise UserError(
                f"{where}: {path} is in the way: no run wrote it; move it, or choose another folder"
            )
        if _is_file(path, descriptor):
            path.unlink()
    finally:
        os.close(descriptor)


def _refusal(where: str, holder: dict[str, Any], doubtful: Path | None) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    since = f" since {holder['since']}" if holder else ""
    text = f"{where}: {who} is writing a run there{since}; wait until it has ended, or choose another folder"
    return text if doubtful is None else f"{text} (should it have died, delete {doubtful})"


def _holder(content: bytes) -> dict[str, Any]:
    """What a lock file says; empty where it is not (yet) one."""
    try:
        holder = parse_json(content)
    except FileFault:
        return {}
    whole = isinstance(holder, dict) and {"pid", "host", "since"} <= holder.keys()
    return holder if whole else {}


def _is_running(process: Any) -> bool:
    if not isinstance(process, int) or process < 1:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


def _is_file(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError:
        return False
