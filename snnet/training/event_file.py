"""TensorBoard's events of a run, in a file that this process writes itself: no thread, and any name of a folder."""

from __future__ import annotations

import os
import platform
import secrets
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new event file in ``folder``. What older files there have from step ``first`` on no longer counts.

    It repeats what other files of a run have, so its errors end no run: at the first one it warns, and writes no more.
    """

    def __init__(self, folder: Path, first: int) -> None:
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
        self._write(
            Event(step=first, file_version="brain.Event:2"),
            Event(step=first, session_log=SessionLog(status=SessionLog.START)),
        )

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write values by their tags."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, *events: Event) -> None:
        if self._file is None:
            return
        try:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise OSError("the file was deleted")
            records = RecordWriter(self._file)
            for event in events:
                event.wall_time = time.time()
                records.write(event.SerializeToString())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        reason = error.strerror or error
        warnings.warn(f"TensorBoard's events are written no more, to {self._folder}: {reason}", stacklevel=4)
