"""Files that are whole or absent, whoever else writes beside them and on whatever file system."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from snnet.errors import UserError
from snnet.files import drafts
from snnet.files.drafts import clear_abandoned, draft_file, draft_folder
from snnet.files.locks import hold, let_go, lock
from snnet.files.outputs import check_disk, check_output_folder, write_atomically, write_bytes
from snnet.models import build_model
from tests.snnet.command_lines import run_line

ABANDONED = ".snnet-" + "0f" * 16 + ".tmp"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_sync_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folder"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes(tmp_path / "a.npz", b"whole")
    assert (tmp_path / "a.npz").read_bytes() == b"whole"


def test_a_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cannot write .*a\.npz: Input/output error"):
        write_bytes(tmp_path / "a.npz", b"whole")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_draft_is_created_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    link(tmp_path / "victim", tmp_path / ABANDONED)
    monkeypatch.setattr(drafts.secrets, "token_hex", lambda size: ABANDONED[7:-4])
    monkeypatch.setattr("snnet.files.outputs.clear_abandoned", lambda folder: None)
    with pytest.raises(UserError, match=r"cannot write .*a\.npz: File exists"):
        write_bytes(tmp_path / "a.npz", b"whole")
    assert (tmp_path / "victim").read_bytes() == b"mine" and not (tmp_path / "a.npz").exists()


def test_names_differ_and_the_umask_holds(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with draft_file(tmp_path) as (one, _), draft_file(tmp_path) as (two, _):
            assert one != two and len(one.name) == len(ABANDONED)
        long = tmp_path / ("x" * 251 + ".npz")  # no file's name can be longer
        write_bytes(long, b"whole")
    finally:
        os.umask(before)
    assert stat.S_IMODE(long.stat().st_mode) == 0o640 and os.listdir(tmp_path) == [long.name]


def test_drafts_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    (tmp_path / ABANDONED).write_bytes(b"half")
    (tmp_path / ABANDONED.replace("0f", "1f")).mkdir()
    (tmp_path / ABANDONED.replace("0f", "1f") / "image.png").touch()
    (tmp_path / "user.tmp").touch()
    (tmp_path / (ABANDONED + "x")).touch()

    def write(file: IO[bytes]) -> None:
        file.write(b"one")
        with draft_folder(tmp_path) as folder:
            clear_abandoned(tmp_path)
            assert folder.is_dir() and len(os.listdir(tmp_path)) == 4

    write_atomically(tmp_path / "a.npz", write)
    assert sorted(os.listdir(tmp_path)) == sorted([ABANDONED + "x", "a.npz", "user.tmp"])
    clear_abandoned(tmp_path / "gone")


def test_drafts_of_the_dead_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(total=8000, free=8000 - sum(path.stat().st_size for path in folder.iterdir()))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    (tmp_path / ABANDONED).write_bytes(bytes(5000))
    check_disk(tmp_path / "a.npz", 8000, "features")
    assert os.listdir(tmp_path) == []
    with draft_file(tmp_path) as (_, file):
        file.write(bytes(5000))
        file.flush()
        with pytest.raises(UserError, match=r"a\.npz: features take 0\.0 GiB, and .* has 0\.0 free"):
            check_disk(tmp_path / "a.npz", 8000, "features")


def test_a_draft_that_is_cleared_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, made = drafts._create_file, []

    def cleared_once(path: Path) -> int:
        descriptor = create(path)
        made.append(path)
        if len(made) == 1:
            clear_abandoned(tmp_path)
        return descriptor

    monkeypatch.setattr(drafts, "_create_file", cleared_once)
    write_bytes(tmp_path / "a.npz", b"whole")
    assert (tmp_path / "a.npz").read_bytes() == b"whole" and len(made) == 2


def test_a_forked_worker_does_not_keep_a_lock(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    hold(descriptor)
    assert lock(descriptor) is True
    child = os.fork()
    if child == 0:
        try:
            os.fstat(descriptor)
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    other = os.open(tmp_path / "lock", os.O_RDWR)
    assert lock(other) is False
    let_go(descriptor)
    let_go(descriptor)
    assert lock(other) is True
    os.close(other)


def test_a_folder_that_is_tried_is_not_left(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b", "--output")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--output .*file/b: must be a folder that can be written to \("):
        check_output_folder(tmp_path / "file" / "b", "--output")


NETWORK = "--arch osnet_x0_25 --height 32 --width 16 --weights"


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("label f.npz --output f.npz", "f.npz"),
        ("label link/../f.npz --output ./f.npz", "f.npz"),
        ("label link.npz --output f.npz", "f.npz"),
        (f"export {NETWORK} w.safetensors --output w.safetensors", "w.safetensors"),
        (
            f"extract {NETWORK} w.safetensors --dataset folder --data-dir . --output w.safetensors",
            "w.safetensors",
        ),
        ("export --config net.yaml --output w.safetensors", "w.safetensors"),
        ("export --checkpoint w.safetensors --output w.safetensors", "w.safetensors"),
        (f"search {NETWORK} none --gallery link --query q.png --picture q.png", "q.png"),
        (f"search {NETWORK} none --gallery link --query q.png --picture crops/g.png", "crops/g.png"),
    ],
)
def test_a_file_that_a_command_reads_is_not_what_it_writes(
    words: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crops").mkdir()
    for name in ("q.png", "crops/g.png"):
        Image.new("RGB", (16, 32)).save(name)
    np.savez("f.npz", features=np.eye(3, dtype=np.float32))
    state = build_model("osnet_x0_25").state_dict()
    safetensors.torch.save_file(state, "w.safetensors")
    (tmp_path / "net.yaml").write_text("arch: osnet_x0_25\nweights: w.safetensors\n")
    (tmp_path / "link.npz").symlink_to("f.npz")
    (tmp_path / "link").symlink_to("crops")
    before = (tmp_path / lost).read_bytes()
    device = [] if "export" in words else ["--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        run_line(*words.split(), "--quiet", *device)
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert re.fullmatch(
        r"error: --(output|picture) \S+: the command reads this file, which would be lost: .*", line
    )
    assert (tmp_path / lost).read_bytes() == before
