"""A run has its folder for itself."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snnet.errors import UserError
from snnet.training import run_folder as module
from snnet.training.run_folder import LOCK_FILE, check_new, new_run_folder, run_folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught, run_folder(folder, "--output-dir"):
        pass
    return str(caught.value)


def test_a_second_run_is_told_who_has_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with run_folder(folder, "--output-dir"):
        holder = json.loads((folder / LOCK_FILE).read_text())
        assert (holder["pid"], holder["host"], len(holder["since"])) == (os.getpid(), platform.node(), 19)
        expected = (
            f"--output-dir {folder}: process {os.getpid()} on {platform.node()} is writing a run there since "
            f"{holder['since']}; wait until it has ended, or choose another folder"
        )
        assert refusal(folder) == expected and refusal(folder) == expected
        (folder / "config.yaml").touch()
    assert os.listdir(folder) == ["config.yaml"]
    with run_folder(folder, "--resume"):
        assert len(os.listdir(folder)) == 2


def test_the_command_that_continues_a_run_finds_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my run's"
    folder.mkdir()
    (folder / "checkpoint.pt").touch()
    with pytest.raises(UserError) as caught:
        check_new(folder)
    words = str(caught.value).partition("continue it with ")[2].partition(", or choose")[0]
    assert shlex.split(words) == ["--resume", str(folder)]


def test_a_folder_in_which_nothing_was_written_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_folder(tmp_path / "a" / "b", "--output-dir"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_lock_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "a" / "b"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        found = refusal(folder)
    assert (
        found == f"--output-dir {folder}: must be a folder that can be written to (No space left on device)"
    )
    assert os.listdir(tmp_path) == []
    with run_folder(folder, "--output-dir"):
        assert os.listdir(folder) == [LOCK_FILE]


@pytest.mark.parametrize("content", [b"", b'{"pid": 1, "host": "x", "since": "y"}'])
def test_the_file_of_a_dead_run_is_in_nobodys_way(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    os.link(tmp_path / "file", tmp_path / LOCK_FILE)
    with run_folder(tmp_path, "--output-dir"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("content", [b"mine", b"{half", b"[]", b'{"pid": 1}', b"[" * 5_000])
def test_a_lock_file_that_no_run_wrote_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert refusal(tmp_path) == (
        f"--output-dir {tmp_path}: {tmp_path / LOCK_FILE} is in the way: no run wrote it; move it, or choose another "
        "folder"
    )
    assert (tmp_path / LOCK_FILE).read_bytes() == content


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "victim")
    assert "must be a folder that can be written to (" in refusal(tmp_path)
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_where_a_file_system_has_no_locks_the_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    file = tmp_path / LOCK_FILE
    with run_folder(tmp_path, "--output-dir"):
        assert refusal(tmp_path).endswith(f"choose another folder (should it have died, delete {file})")
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    holder = {"pid": dead.pid, "host": platform.node(), "since": "2026-01-01 00:00:00"}
    file.write_text(json.dumps(holder))
    with run_folder(tmp_path, "--output-dir"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    file.write_text(json.dumps({**holder, "host": "elsewhere"}))
    assert f"process {dead.pid} on elsewhere is writing a run there since 2026-01-01 00:00:00" in refusal(
        tmp_path
    )


def test_runs_of_one_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    stem, together, folders = str(tmp_path / "runs" / "x"), threading.Barrier(4), []

    def run() -> None:
        together.wait(60)
        with new_run_folder(stem) as folder:
            folders.append(folder.name)
            together.wait(60)
            (folder / "config.yaml").touch()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == ["x", "x-2", "x-3", "x-4"]
    assert all((tmp_path / "runs" / name / "config.yaml").exists() for name in folders)


def test_of_many_at_once_one_has_the_folder(tmp_path: Path) -> None:
    """Eight at once, again and again: never two, and never an error of another kind."""
    together, inside, most, outcomes = threading.Barrier(8), [], [0], []

    def run() -> None:
        for _ in range(40):
            together.wait(60)
            try:
                with run_folder(tmp_path / "run", "--output-dir"):
                    inside.append(1)
                    most[0] = max(most[0], len(inside))
                    inside.pop()
                outcomes.append("had it")
            except UserError as error:
                outcomes.append("refused" if "is writing a run there" in str(error) else str(error))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(outcomes) == 320 and outcomes.count("had it") >= 40
    assert set(outcomes) <= {"had it", "refused"} and not list(tmp_path.glob("run/*"))


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: int, number: int) -> None:
        raise PermissionError

    assert module._is_running(os.getpid()) and not module._is_running("x") and not module._is_running(-1)
    monkeypatch.setattr(os, "kill", refuse)
    assert module._is_running(1)
