"""Forked programs find what a process of their own would find."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.paths import ROOT

TOLD = "import json, sys; print(json.dumps([sys.path, sys.argv]))"


@pytest.mark.parametrize("way", ["-c", "-m", "script"])
def test_path_and_arguments_are_those_of_a_process(way: str, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(TOLD)
    words = {"-c": ("-c", TOLD, "x"), "-m": ("-m", "told", "x"), "script": (f"{tmp_path}/told.py", "x")}[way]
    environment = {"PYTHONPATH": f"{ROOT}:/nowhere"}
    forked = forks.python(*words, environment=environment, folder=tmp_path)
    command = [sys.executable, "-S", *words]  # -S: without the folders of packages, which are the same
    started = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=True)
    (path, arguments), (own_path, own_arguments) = json.loads(forked.stdout), json.loads(started.stdout)
    first = "" if way == "-c" else str(tmp_path)
    assert own_path[:3] == [first, str(ROOT), "/nowhere"]
    assert path[:3] == [first or str(tmp_path), *own_path[1:3]]
    assert path[3 : len(own_path)] == own_path[3:]
    assert arguments[1:] == own_arguments[1:] == ["x"]


def test_the_server_needs_no_newer_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """-P came with Python 3.11; and what keeps this folder from sys.path is not for the server."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: started.append((command, env)))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    forks._Server(("torch",))
    ((command, environment),) = started
    assert command == [sys.executable, "-m", "tests.forks", "torch"]
    assert not {"PYTHONSAFEPATH", "PYTHONPATH"} & environment.keys()
