"""TensorBoard's events: readable by it, in any folder, and never the end of a run."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from snnet.training import event_file
from snnet.training.event_file import Event, EventFile, scalar_event
from snnet.training.runlog import RunLog


def values(folder: Path, tag: str) -> list[tuple[int, float, float]]:
    """Step, value and time of the events of a tag, as TensorBoard reads a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    found = read.Scalars(tag) if tag in read.Tags()["scalars"] else []
    return [(event.step, event.value, event.wall_time) for event in found]


def event(step: int, value: float, tag: str = "a") -> Event:
    return scalar_event(step, {tag: value}, 100.0 + step)


def test_a_file_replaces_those_of_earlier_starts(tmp_path: Path) -> None:
    """TensorBoard's data server counts everything that any file of a folder has, whatever a later one says."""
    (tmp_path / "events.out.tfevents.1700000000.host.1.0").write_bytes(b"")  # of another program
    first = EventFile(tmp_path)
    first.add(event(0, 1.0), event(1, 2.0), event(2, 3.0), event(2, 0.5, "only once"))
    first.close()
    second = EventFile(tmp_path, [event(0, 1.0)])
    second.add(event(1, 4.0))
    second.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert values(tmp_path, "a") == [(0, 1.0, 100.0), (1, 4.0, 101.0)]
    assert values(tmp_path, "only once") == []


def test_a_past_that_cannot_be_written_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = EventFile(tmp_path, [event(0, 1.0)])
    first.close()
    (older,) = tmp_path.iterdir()
    content, calls = older.read_bytes(), []

    def full(writer: object, record: bytes) -> None:
        calls.append(record)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file.RecordWriter, "write", full)
    with pytest.warns(UserWarning, match="No space left on device$"):
        EventFile(tmp_path, [event(0, 1.0), event(1, 2.0)]).close()
    assert len(calls) == 3 and older.read_bytes() == content


def test_a_resumed_run_has_every_epoch_at_its_time(tmp_path: Path) -> None:
    records = [{"epoch": epoch, "loss": 1.0 + epoch, "seconds": 50.0} for epoch in range(3)]
    RunLog(tmp_path, records).close()
    found = values(tmp_path / "tensorboard", "training/loss")
    assert [(step, value) for step, value, _ in found] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert np.diff([at for _, _, at in found]) == pytest.approx([50.0, 50.0])


def test_a_folder_whose_name_is_no_utf8_is_written_to(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    EventFile(folder).close()
    (file,) = folder.iterdir()
    assert file.name.startswith("events.out.tfevents.") and file.stat().st_size > 0


def test_a_folder_that_vanishes_is_a_warning_and_no_error(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tensorboard")
    shutil.rmtree(tmp_path / "tensorboard")
    with pytest.warns(UserWarning) as warned:
        events.add(event(0, 1.0))
        events.add(event(1, 1.0))
    assert [str(warning.message) for warning in warned] == [
        f"TensorBoard's events are written no more, to {tmp_path}/tensorboard: the file was deleted"
    ]
    (tmp_path / "tensorboard").touch()
    with pytest.warns(UserWarning, match="File exists"):
        EventFile(tmp_path / "tensorboard").add(event(0, 1.0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events._file.close()
    events._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.warns(UserWarning, match="No space left on device$"):
        events.add(event(0, 1.0))
    events.close()


class BadFile:
    """A file on a disk over the network that is full: it takes ``most`` bytes at a time, and its close is an error."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most, self.fileno = file, most, file.fileno

    def write(self, content: bytes) -> int:
        return self.file.write(content[: self.most])

    def close(self) -> None:
        self.file.close()
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(("most", "reason"), [(10, "No space left on device"), (10**6, "Input/output error")])
def test_short_writes_and_failures_of_close_are_one_warning(most: int, reason: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path, [{"epoch": 0, "loss": 1.0, "seconds": 1.0}])
    log._events._file = BadFile(log._events._file, most)
    with pytest.warns(UserWarning) as warned:
        log.write_epoch()
        log.write_epoch()
        log.write_results({})
    assert [str(warning.message) for warning in warned] == [
        f"TensorBoard's events are written no more, to {tmp_path}/tensorboard: {reason}"
    ]
    assert (tmp_path / "results.json").read_text() == "{}\n"
    assert len(values(tmp_path / "tensorboard", "training/loss")) == (1 if most == 10 else 3)


def test_older_files_that_cannot_be_listed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> None:
        raise FileNotFoundError(path)

    EventFile(tmp_path).close()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", gone)
        EventFile(tmp_path, [event(0, 1.0)]).close()
    assert len(list(tmp_path.iterdir())) == 2 and values(tmp_path, "a") == [(0, 1.0, 100.0)]
