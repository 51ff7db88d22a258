"""TensorBoard's events of a run, in a file that this process writes itself: no thread, and any name of a folder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import re
import secrets
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_OWN_NAME = re.compile(r"events\.out\.tfevents\.[0-9]{10}\.[0-9]{9}\..+\.[0-9]+\.[0-9a-f]{8}")


def scalar_event(step: int, scalars: Mapping[str, float], wall_time: float) -> Event:
    """Values of a step by their tags; ``wall_time`` is in seconds as :func:`time.time` gives it."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    return Event(step=step, summary=Summary(value=values), wall_time=wall_time)


class EventFile:
    """A new event file in ``folder`` that begins with the ``past`` of its run, and replaces all older ones there.

    The older ones, which this class wrote, are deleted when the past is in the new one. A TensorBoard that is open
    replaces the values of every tag that the new file has.

    It repeats what other files of a run have, so its errors end no run: at the first one it warns, and writes no more.
    """

    def __init__(self, folder: Path, past: Iterable[Event] = ()) -> None:
        self._folder = folder
        # TensorBoard reads the files of a folder in the order of their names, those of one second too.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._file: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            self._give_up(error)
        now = time.time()
        self.add(
            Event(file_version="brain.Event:2", wall_time=now),
            Event(session_log=SessionLog(status=SessionLog.START), wall_time=now),
            *past,
        )
        if self._file is not None:
            self._delete_all_but(name)

    def add(self, *events: Event) -> None:
        """Write events."""
        if self._file is None:
            return
        try:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise OSError("the file was deleted")
            content = io.BytesIO()
            records = RecordWriter(content)
            for event in events:
                records.write(event.SerializeToString())
            # On a disk that gets full, an unbuffered file takes a part and raises nothing.
            if self._file.write(content.getvalue()) != content.tell():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            self._give_up(error)

    def _delete_all_but(self, name: str) -> None:
        with contextlib.suppress(OSError):  # the next start tries again
            for path in self._folder.iterdir():
                if _OWN_NAME.fullmatch(path.name) and path.name != name:
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()
        reason = error.strerror or error
        warnings.warn(f"TensorBoard's events are written no more, to {self._folder}: {reason}", stacklevel=4)
