"""TensorBoard's events: readable by it, in any folder, and never the end of a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from snnet.training.event_file import EventFile


def test_steps_that_are_done_again_count_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, values in ((0, [1.0, 2.0, 3.0]), (1, [4.0, 5.0])):
        events = EventFile(tmp_path, first)
        for step, value in enumerate(values, start=first):
            events.add(step, {"training/loss": value})
        events.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("training/loss")] == [(0, 1), (1, 4), (2, 5)]


def test_a_folder_whose_name_is_no_utf8_is_written_to(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    EventFile(folder, 0).close()
    (file,) = folder.iterdir()
    assert file.name.startswith("events.out.tfevents.") and file.stat().st_size > 0


def test_a_folder_that_vanishes_is_a_warning_and_no_error(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tensorboard", 0)
    shutil.rmtree(tmp_path / "tensorboard")
    with pytest.warns(UserWarning) as warned:
        events.add(0, {"a": 1.0})
        events.add(1, {"a": 1.0})
    assert [str(warning.message) for warning in warned] == [
        f"TensorBoard's events are written no more, to {tmp_path}/tensorboard: the file was deleted"
    ]
    (tmp_path / "tensorboard").touch()
    with pytest.warns(UserWarning, match="File exists"):
        EventFile(tmp_path / "tensorboard", 0).add(0, {"a": 1.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    events = EventFile(tmp_path, 0)
    events._file.close()
    events._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.warns(UserWarning, match="No space left on device$"):
        events.add(0, {"a": 1.0})
    events.close()
