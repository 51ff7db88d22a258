"""Checkpoints: whole or absent, unable to run code, and refused in one line where they do not fit."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from snnet.errors import UserError
from snnet.files.outputs import write_atomically, write_text
from snnet.files.torch_files import write_torch
from snnet.training.checkpoint import (
    image_fingerprint,
    load_checkpoint,
    load_state,
    picture_fingerprint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from tests.snnet.tiny_run import contents


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, **contents(2.0))
    for where in (path, tmp_path):
        state = load_checkpoint(where)
        assert torch.equal(state["model"]["weight"], torch.full((2, 3), 2.0))
        assert state["metrics"] == [{"epoch": 0, "loss": 2.0}]
        assert state["config"] == {"lr": 0.1, "weights": None}
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, **contents(1.0))

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*checkpoint.pt: No space left on device"):
        write_atomically(path, fail)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert load_checkpoint(path)["model"]["weight"].sum() == 6.0


@pytest.mark.parametrize("room", [0, 1_000, 100_000])
def test_a_disk_that_gets_full_is_told_in_its_own_words(room: int) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() + len(content) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        write_torch({"weight": torch.zeros(100_000)}, Full())


def test_text_that_is_no_utf8_is_written_as_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "ä/" + os.fsdecode(b"\xff.png"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == r"ä/\udcff.png"


def test_a_leftover_of_a_killed_write_is_neither_read_nor_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".snnet-{'0' * 32}.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path / "checkpoint.pt", **contents(3.0))
    assert load_checkpoint(tmp_path)["model"]["weight"].sum() == 18.0
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_of_two_processes_that_write_one_path_the_last_wins(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    other = (
        "import sys; from pathlib import Path; from snnet.files.outputs import write_atomically\n"
        "write_atomically(Path(sys.argv[1]), lambda file: file.write(b'other'))"
    )

    def write(file: Any) -> None:
        file.write(b"ours, ")
        subprocess.run([sys.executable, "-c", other, str(path)], check=True)
        assert path.read_bytes() == b"other"
        file.write(b"in one piece")

    write_atomically(path, write)
    assert path.read_bytes() == b"ours, in one piece"
    assert os.listdir(tmp_path) == ["features.npz"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*gone.*: No such file or directory"):
        save_checkpoint(tmp_path / "gone" / "checkpoint.pt", **contents())


def test_an_incomplete_set_of_contents_is_not_written(tmp_path: Path) -> None:
    partial = contents()
    del partial["rng"]
    with pytest.raises(TypeError, match="a checkpoint holds"):
        save_checkpoint(tmp_path / "checkpoint.pt", **partial)
    assert os.listdir(tmp_path) == []


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, writer: str) -> None:
    path, target = tmp_path / "checkpoint.pt", tmp_path / "owned"
    state = {"format": "snnet-checkpoint", "version": 1, **contents(), "rng": Malicious(target)}
    if writer == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    assert "is refused" in refusal(path)
    assert not target.exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert refusal(path).startswith("no checkpoint at")
    save_checkpoint(path, **contents())
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:size])
        assert "damaged" in refusal(path) or "refused" in refusal(path)
    path.write_text("epoch,loss\n")
    assert "not a checkpoint" in refusal(path)
    torch.save({"weight": torch.zeros(2)}, path)
    assert "is not a training checkpoint of this package" in refusal(path)
    torch.save({"format": "snnet-checkpoint", "version": 99}, path)
    assert refusal(path).endswith("has checkpoint version 99; this package reads 1 and 2")
    torch.save({"format": "snnet-checkpoint", "version": 1, **contents(), "metrics": None}, path)
    assert "'metrics' is missing or of the wrong type" in refusal(path)


def test_a_state_of_another_shape_names_the_keys() -> None:
    module = nn.Linear(3, 2)
    state = {"weight": torch.zeros(4, 3), "extra": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_state(module, state, Path("run/checkpoint.pt"), "model")
    assert str(caught.value) == (
        "run/checkpoint.pt does not fit this model: bias is missing; extra is unknown; "
        "weight has shape (4, 3), needed (2, 3)"
    )
    load_state(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, Path("x"), "model")
    assert module(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]


def test_random_states_return_to_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random()

    np.random.randn()  # leaves the generator with half a pair of normal numbers
    save_checkpoint(tmp_path / "checkpoint.pt", **contents())
    first = draw()
    assert draw() != first
    set_rng_state(load_checkpoint(tmp_path)["rng"])
    assert draw() == first


def test_fingerprint_follows_names_and_order_but_not_the_folder() -> None:
    one = image_fingerprint(["/a/x.jpg", "/a/y.jpg"])
    assert one == image_fingerprint(["/elsewhere/x.jpg", "/elsewhere/y.jpg"])
    assert one != image_fingerprint(["/a/y.jpg", "/a/x.jpg"])
    assert one != image_fingerprint(["/a/x.jpg"])


def test_fingerprint_of_names_that_are_no_utf8_is_that_of_their_bytes() -> None:
    assert image_fingerprint(["/a/ä.jpg", "/a/y.jpg"]) == zlib.crc32("ä.jpg\ny.jpg".encode())
    names = [os.fsdecode(b"/a/\xff.jpg"), "/a/y.jpg"]
    assert image_fingerprint(names) == zlib.crc32(b"\xff.jpg\ny.jpg")


def test_fingerprint_follows_the_files_and_not_where_they_lie() -> None:
    here = image_fingerprint(["/a/id1/0.jpg", "/a/id2/0.jpg"])
    assert here == image_fingerprint(["/b/c/id1/0.jpg", "/b/c/id2/0.jpg"])
    assert here != image_fingerprint(["/a/id7/0.jpg", "/a/id9/0.jpg"])
    assert here != image_fingerprint(["/a/id2/0.jpg", "/a/id1/0.jpg"])


def test_the_content_of_images_that_are_spread_over_all_is_compared(tmp_path: Path) -> None:
    def written(name: str, count: int, changed: int | None = None, behind: bytes = b"") -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        for index in range(count):
            (folder / f"{index}.bmp").write_bytes(
                bytes([index % 7, index == changed]) + bytes(2**16 - 2) + behind
            )
        return [str(folder / f"{index}.bmp") for index in range(count)]

    few = picture_fingerprint("folder", written("few", 5))
    assert few == picture_fingerprint("folder", written("copied", 5))
    assert few == picture_fingerprint("folder", written("longer", 5, behind=b"more"))
    assert few not in [
        picture_fingerprint("folder", written(f"changed {index}", 5, index)) for index in range(5)
    ]
    assert picture_fingerprint("folder", []) == 0
    with pytest.raises(UserError, match=r"cannot read image '.*gone.png': No such file"):
        picture_fingerprint("folder", [str(tmp_path / "gone.png")])


def test_of_many_images_a_thousand_at_most_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def found(path: str, mode: str) -> io.BytesIO:
        opened.append(path)
        return io.BytesIO(path.encode())

    monkeypatch.setattr("builtins.open", found)
    for count, read in ((1000, 1000), (1001, 501), (200_000, 1000)):
        opened.clear()
        picture_fingerprint("folder", [str(index) for index in range(count)])
        assert len(opened) == read and int(opened[-1]) >= count - count // 1000 - 2


def test_one_of_several_processes_leaves_the_gpus_of_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: "own")
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: calls.append(state))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: calls.append(states))
    whole, own = rng_state(), rng_state(every_gpu=False)
    assert (whole["cuda"], own["cuda"]) == (["first", "second"], ["own"])
    for state, every_gpu in ((whole, True), (own, True), (own, False), (whole, False)):
        set_rng_state(state, every_gpu=every_gpu)
    assert calls == [["first", "second"], "own", "own"]
