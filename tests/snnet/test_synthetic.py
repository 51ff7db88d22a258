"""The built-in set: fixed sizes, the same pixels from the same seed, whole or absent on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snnet.errors import UserError
from snnet.retrieval.rank_metrics import rank_metrics
from snnet.synthetic import generate, plan, writing
from snnet.synthetic.image import draw_image
from snnet.synthetic.person import person_of
from snnet.synthetic.plan import Shot, plan_shots

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


@pytest.fixture
def small_plan(monkeypatch: pytest.MonkeyPatch) -> list[Shot]:
    """Make the set one of every 60th image, so that drawing it takes a fraction of a second."""
    shots = plan_shots(0)[::60]
    monkeypatch.setattr(writing, "plan_shots", lambda seed: shots)
    return shots


def _write(root: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> dict[str, bytes]:
    monkeypatch.setattr(writing, "_processors", lambda: processes)
    folder = generate(root)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", [0, 7])
def test_sizes_do_not_depend_on_the_seed(seed: int) -> None:
    shots = plan_shots(seed)
    images = Counter(shot.folder for shot in shots)
    distractors = [shot for shot in shots if shot.pid == 0]
    assert images == {"bounding_box_train": 2400, "query": 300, "bounding_box_test": 1950}
    assert len(distractors) == 150 and {shot.folder for shot in distractors} == {"bounding_box_test"}
    assert len({(shot.folder, shot.file_name) for shot in shots}) == 4650
    assert {shot.camera for shot in shots} == set(range(5))


@pytest.mark.parametrize("seed", [0, 7])
def test_identities_are_unequal_and_disjoint(seed: int) -> None:
    shots = plan_shots(seed)
    train = Counter(shot.pid for shot in shots if shot.folder == "bounding_box_train")
    test = Counter(shot.pid for shot in shots if shot.folder == "bounding_box_test" and shot.pid > 0)
    assert set(train) == set(range(1, 201)) and set(test) == set(range(201, 351))
    for sizes in (train, test):
        assert min(sizes.values()) == 6 and max(sizes.values()) == 20
    cameras = Counter(
        len({shot.camera for shot in shots if shot.pid == pid and shot.folder == "bounding_box_train"})
        for pid in train
    )
    assert set(cameras) == {2, 3, 4, 5}


@pytest.mark.parametrize("seed", [0, 7])
def test_every_query_has_a_match_in_another_camera(seed: int) -> None:
    shots = plan_shots(seed)
    gallery = {(shot.pid, shot.camera) for shot in shots if shot.folder == "bounding_box_test"}
    queries = [(shot.pid, shot.camera) for shot in shots if shot.folder == "query"]
    assert len(set(queries)) == 300 and set(Counter(pid for pid, _ in queries).values()) == {2}
    for pid, camera in queries:
        assert any((pid, other) in gallery for other in range(plan.NUM_CAMERAS) if other != camera)


def test_look_alikes_share_colours_and_differ_otherwise() -> None:
    for split, count in ((plan.SPLIT_TRAIN, 200), (plan.SPLIT_TEST, 150)):
        for identity in range(count):
            base_place = {3: 2, 4: 2, 6: 5}.get(identity % 10)
            if base_place is None:
                continue
            person = person_of(0, split, identity)
            base = person_of(0, split, identity - identity % 10 + base_place)
            for mine, its in ((person.upper, base.upper), (person.lower, base.lower)):
                assert max(abs(a - b) for a, b in zip(mine.colour, its.colour, strict=True)) <= 5
            assert (person.upper.pattern, person.backpack) != (base.upper.pattern, base.backpack)


def test_an_image_depends_on_its_seed_and_place_alone() -> None:
    shots = plan_shots(0)[::400]
    forwards = [draw_image(3, shot) for shot in shots]
    backwards = [draw_image(3, shot) for shot in reversed(shots)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert one.shape == (128, 64, 3) and one.dtype == np.uint8
        np.testing.assert_array_equal(one, other)
    # Another seed is another person before another background, not another noise.
    for shot, image in zip(shots, forwards, strict=True):
        assert np.abs(draw_image(4, shot).astype(int) - image).mean() > 10.0


def test_files_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot]
) -> None:
    alone = _write(tmp_path / "one", monkeypatch, processes=1)
    shared = _write(tmp_path / "two", monkeypatch, processes=2)
    assert alone == shared and len(alone) == len(small_plan) + 1
    for shot in small_plan[::10]:
        path = tmp_path / "two" / "synthetic-v1-seed0" / shot.folder / shot.file_name
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), draw_image(0, shot))
    manifest = json.loads(alone["manifest.json"])
    assert manifest["images"] == {name: sum(s.folder == name for s in small_plan) for name in FOLDERS}
    assert (manifest["name"], manifest["version"], manifest["seed"]) == ("synthetic", 1, 0)


def test_a_finished_set_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot]
) -> None:
    monkeypatch.setenv("SNNET_CACHE", str(tmp_path))
    folder = generate()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(writing, "draw_image", None)  # drawing again would fail
    assert generate() == folder == tmp_path / "synthetic-v1-seed0"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_while_drawing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot], processes: int
) -> None:
    def fail_late(seed: int, shot: Shot) -> np.ndarray:
        if shot == small_plan[-2]:
            raise KeyboardInterrupt if processes == 1 else ValueError("late")
        return draw_image(seed, shot)

    monkeypatch.setattr(writing, "_processors", lambda: processes)
    monkeypatch.setattr(writing, "draw_image", fail_late)
    with pytest.raises(KeyboardInterrupt if processes == 1 else ValueError):
        generate(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
@pytest.mark.parametrize("lacking", ["semaphore", "process", "thread"])
def test_the_set_is_drawn_where_no_processes_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot], lacking: str
) -> None:
    expected = _write(tmp_path / "one", monkeypatch, processes=1)
    fork, forks = os.fork, []

    def fork_once() -> int:
        forks.append(None)
        if len(forks) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    def refuse(*_: object, **__: object) -> None:
        if lacking == "thread":
            raise RuntimeError("can't start new thread")
        raise OSError(28, "No space left on device")

    if lacking == "process":
        monkeypatch.setattr(os, "fork", fork_once)
    else:
        name = "multiprocessing.synchronize.SemLock" if lacking == "semaphore" else "threading.Thread.start"
        monkeypatch.setattr(f"{name}{'.__init__' if lacking == 'semaphore' else ''}", refuse)
    before = multiprocessing.active_children()
    assert _write(tmp_path / "two", monkeypatch, processes=2) == expected
    assert multiprocessing.active_children() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_a_process_that_dies_while_it_draws_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot]
) -> None:
    monkeypatch.setattr(writing, "_processors", lambda: 2)
    monkeypatch.setattr(writing, "draw_image", lambda *_: os._exit(9))
    with pytest.raises(UserError) as caught:
        generate(tmp_path)
    assert str(caught.value) == (
        "a process that draws the synthetic set has died, as for want of memory: try again"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_a_kill_while_drawing_leaves_no_half_set_and_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot]
) -> None:
    root = tmp_path / "root"
    follow, drawn = writing._follow_parent, []

    def draw_one(seed: int, shot: Shot) -> np.ndarray:
        if drawn:
            time.sleep(900)
        drawn.append(shot)
        return draw_image(seed, shot)

    def note(parent: int) -> None:
        follow(parent)
        (tmp_path / f"worker-{os.getpid()}").touch()

    process = os.fork()
    if process == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            monkeypatch.setattr(writing, "_processors", lambda: 2)
            monkeypatch.setattr(writing, "_follow_parent", note)
            monkeypatch.setattr(writing, "draw_image", draw_one)
            generate(root)
        finally:
            os._exit(0)
    try:
        _wait_for(lambda: len(list(tmp_path.glob("worker-*"))) == 2 and any(root.glob(".snnet-*/*/*.png")))
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    assert len(workers) == 2 and not (root / "synthetic-v1-seed0").exists()
    _wait_for(lambda: not any(_is_running(worker) for worker in workers))
    folder = generate(root)
    assert sum(1 for _ in folder.rglob("*.png")) == len(small_plan)
    assert os.listdir(root) == [folder.name]  # the draft of the dead process is gone, too


def _wait_for(condition: Callable[[], bool], seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_the_faster_of_two_processes_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_plan: list[Shot]
) -> None:
    draw_set = writing._draw_set

    def draw_while_another_finishes(folder: Path, seed: int) -> None:
        monkeypatch.setattr(writing, "_draw_set", draw_set)
        generate(tmp_path)
        (tmp_path / "synthetic-v1-seed0" / "first").touch()
        draw_set(folder, seed)

    monkeypatch.setattr(writing, "_draw_set", draw_while_another_finishes)
    folder = generate(tmp_path)
    assert (folder / "first").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic-v1-seed0"]


def test_a_damaged_set_is_named(tmp_path: Path, small_plan: list[Shot]) -> None:
    folder = generate(tmp_path)
    queries = sorted((folder / "query").iterdir())
    queries[0].unlink()
    with pytest.raises(UserError, match=f"query holds {len(queries) - 1} images, need {len(queries)}"):
        generate(tmp_path)
    os.truncate(folder / "manifest.json", 2**41)  # which takes no place on the disk
    with pytest.raises(UserError, match="no finished synthetic set"):
        generate(tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished synthetic set"):
        generate(tmp_path)


def test_the_set_is_not_drawn_among_other_files(tmp_path: Path, small_plan: list[Shot]) -> None:
    crop = tmp_path / "crops" / "person.jpg"
    crop.parent.mkdir()
    crop.touch()
    with pytest.raises(UserError, match=r"is not drawn into .*crops, which holds other files \(person.jpg\)"):
        generate(crop.parent)
    assert list(crop.parent.iterdir()) == [crop]
    crop.unlink()
    folder = generate(crop.parent)
    crop.touch()  # beside a finished set, which is used as it is
    assert generate(crop.parent) == folder and len(list((folder / "query").iterdir())) > 0
    folder.rename(folder.with_name("synthetic-v0-seed0"))  # of another version
    crop.unlink()
    assert generate(crop.parent) == folder and len(list(crop.parent.iterdir())) == 2


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    for seed in (-1, 0.5, True):
        with pytest.raises(UserError, match="seed of the synthetic set: got"):
            generate(tmp_path, seed=seed)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the synthetic set into .*file"):
        generate(tmp_path / "file")


def test_raw_pixels_fail_to_find_people() -> None:
    # 30 of the 150 test identities and no distractors: easier than the whole set, whose mAP is lower.
    shots = [shot for shot in plan_shots(0) if shot.split == plan.SPLIT_TEST and shot.identity < 30]
    small = [Image.fromarray(draw_image(0, shot)).resize((16, 32), Image.Resampling.BOX) for shot in shots]
    pixels = np.stack([np.asarray(image, dtype=np.float32).ravel() for image in small])
    is_query = np.array([shot.folder == "query" for shot in shots])
    pids, cams = np.array([shot.pid for shot in shots]), np.array([shot.camera for shot in shots])
    features = pixels - pixels[~is_query].mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    metrics = rank_metrics(
        features[is_query] @ features[~is_query].T,
        pids[is_query],
        pids[~is_query],
        cams[is_query],
        cams[~is_query],
    )
    assert metrics.num_queries == 60 and metrics.num_without_match == 0
    assert 0.10 < metrics.mAP < 0.35
