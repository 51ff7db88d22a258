"""Where the time of a step goes, and the record of where a run ran."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from snnet.config.options import RuntimeConfig
from snnet.errors import UserError
from snnet.runtime import environment, prepare
from snnet.training import timing
from snnet.training.runlog import RunLog, epoch_line, read_starts, time_line
from snnet.training.timing import Laps, seconds_by_part, total_by_part

RECORD = {
    "epoch": 4, "loss": 2.0, "positives": 3.0, "seconds": 12.0,
    "seconds_data": 0.5, "seconds_forward": 3.0, "seconds_backward": 5.0, "seconds_labels": 1.0,
    "seconds_update": 0.5, "seconds_measure": 2.0,
}  # fmt: skip
PARTS = {"data": 0.5, "backbone": 8.0, "labels+loss": 1.0, "update": 0.5}


def test_laps_add_up_by_the_hosts_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0, 13.5, 17.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    laps = Laps(torch.device("cpu"))
    for name in ("data", "forward", "data", "forward"):
        laps.end(name)
    assert laps.seconds() == {"data": 1.5, "forward": 6.0}


def test_laps_on_cuda_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for events: milliseconds between one part's end on the device and the next one's."""
    reached, waits = iter([0.0, 40.0, 140.0, 150.0]), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(reached)

        def elapsed_time(self, end: Event) -> float:
            assert waits  # a time can be read only when the device has come so far
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    laps = Laps(torch.device("cuda"))
    for name in ("data", "forward", "data"):
        laps.end(name)
    assert laps.seconds() == pytest.approx({"data": 0.05, "forward": 0.1})


def test_parts_sum_up_their_laps() -> None:
    assert seconds_by_part(RECORD) == PARTS
    assert seconds_by_part({"seconds_data": 1.0, "seconds_forward": 2.0}) == {"data": 1.0}
    assert total_by_part([RECORD, RECORD, {"seconds": 3.0}]) == {name: 2 * s for name, s in PARTS.items()}
    assert "12.0 s (data 0.5, backbone 8.0, labels+loss 1.0, update 0.5)" in epoch_line(RECORD)
    assert time_line(PARTS) == (
        "time of the training steps: data 5.0 %, backbone 80.0 %, labels+loss 10.0 %, update 5.0 %"
    )


def test_cores_are_all_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(40)), raising=False)
    assert environment(prepare(RuntimeConfig(device="cpu")))["cores"] == 40


def test_each_start_of_a_run_is_on_record(tmp_path: Path) -> None:
    here = environment(prepare(RuntimeConfig(device="cpu")))
    assert here["versions"]["torch"] == torch.__version__ or here["versions"]["torch"] in torch.__version__
    assert (here["device"], here["threads"], here["cuda"]) == ("cpu", torch.get_num_threads(), None)
    assert here["backends"]["mplp"] in ("cpu", "reference") and here["device_name"]
    log = RunLog(tmp_path, [])
    log.write_start(here)
    log.close()
    for epochs in (3, 3, 5):  # the second was stopped before its first checkpoint
        again = RunLog(tmp_path, [{"epoch": e, "loss": 1.0} for e in range(epochs)])
        again.write_start({**here, "threads": epochs})
        again.close()
    starts = read_starts(tmp_path / "environment.json")
    assert [(start["first_epoch"], start["threads"]) for start in starts[1:]] == [(3, 3), (5, 5)]
    assert starts[0] == {"first_epoch": 0, **json.loads(json.dumps(here))}
    (tmp_path / "environment.json").write_text(
        '[{"first_epoch": true}, {"first_epoch": 3}, {"first_epoch": 3.0}]'
    )
    assert read_starts(tmp_path / "environment.json") == [{"first_epoch": 3}]
    (tmp_path / "environment.json").write_text('{"damaged": ')
    assert read_starts(tmp_path / "environment.json") == []
    os.truncate(tmp_path / "environment.json", 2**41)  # which takes no place on the disk
    again.write_start(here)
    assert [start["first_epoch"] for start in read_starts(tmp_path / "environment.json")] == [5]


def test_a_run_that_begins_drops_the_results_of_another(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    RunLog(tmp_path, []).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    (tmp_path / "results.json").mkdir()
    with pytest.raises(UserError, match=r"^cannot delete .*results.json: "):
        RunLog(tmp_path, [])


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_the_callers_deterministic_mode_stays_on(
    on: bool, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", on)  # the opposite of what is to be
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    prepare(RuntimeConfig(device="cpu", deterministic=asked))
    assert torch.are_deterministic_algorithms_enabled() is (on or asked)
    assert torch.backends.cudnn.benchmark is not (on or asked)


@pytest.mark.parametrize(("name", "chosen"), [("auto", []), ("cuda", []), ("cuda:0", [0]), ("cuda:1", [1])])
def test_a_gpu_without_a_number_is_the_current_one(
    name: str, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.cuda.set_device takes no device without a number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", (set_to := []).append)
    device = prepare(RuntimeConfig(device=name)).device
    assert (device.type, device.index) == ("cuda", chosen[0] if chosen else None)
    assert set_to == chosen
