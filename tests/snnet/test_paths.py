"""The user's home, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snnet.config.commands import SearchCommand, TrainCommand
from snnet.errors import UserError
from snnet.files.paths import cache_folder, expand_home

SEARCH = ["--gallery", "g", "--query", "q", "--checkpoint", "c"]


@pytest.fixture(params=["unset", ""])
def homeless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know, as in a container that is started with --user."""
    monkeypatch.delenv("SNNET_CACHE", raising=False)
    if request.param == "":
        monkeypatch.setenv("HOME", "")
        return
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_is_called_tilde() -> None:
    message = r"^~/x: there is no home folder to put for ~: set HOME, or give the whole path$"
    with pytest.raises(UserError, match=message):
        expand_home("~/x")
    with pytest.raises(UserError, match=message):
        TrainCommand.parse(["--output-dir", "~/x"])
    with pytest.raises(UserError, match=r"^no folder to keep files in: set SNNET_CACHE to one, or HOME, "):
        cache_folder()
    with pytest.raises(UserError, match="set SNNET_CACHE"):
        SearchCommand.parse(SEARCH)
    assert SearchCommand.parse([*SEARCH, "--feature-cache", "none"]).feature_cache is None
    assert [expand_home(path) for path in ("a/~", "~backup.npz", "/~/x")] == ["a/~", "~backup.npz", "/~/x"]


def test_with_a_home_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("SNNET_CACHE", raising=False)
    assert expand_home("~/x") == "/home/somebody/x" and expand_home("~") == "/home/somebody"
    assert cache_folder() == Path("/home/somebody/.cache/snnet")
    monkeypatch.setenv("SNNET_CACHE", "~/kept")
    assert cache_folder() == Path("/home/somebody/kept")
    assert SearchCommand.parse(SEARCH).feature_cache == Path(os.environ["HOME"], "kept")
