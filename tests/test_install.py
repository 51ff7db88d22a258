"""``scripts/install.sh``, which `make` installs by: uv where that does what pip would, else pip."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "scripts" / "install.sh"
ASKED = ["pip config list", "pip install --quiet --only-binary :all: uv"]
BY_UV = "uv pip install --quiet --python {env}/bin/python --editable .[a]"
BY_PIP = "pip install --quiet --editable .[a]"
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  "config list") echo "$CONFIG" ;;
  *" uv") exit "$NO_UV" ;;
  "pip install "*) exit "$UV_FAILS" ;;
esac
"""


@pytest.mark.parametrize(
    ("config", "no_uv", "uv_fails", "calls"),
    [
        ("global.timeout='60'", 0, 0, [*ASKED, BY_UV]),
        ("", 0, 2, [*ASKED, BY_UV, BY_PIP]),
        ("", 1, 0, [*ASKED, BY_PIP]),
        ("global.index-url='x'", 0, 0, [ASKED[0], BY_PIP]),
        (":env:.index-url='x'", 0, 0, [ASKED[0], BY_PIP]),
        ("global.extra-index-url='x'", 0, 0, [ASKED[0], BY_PIP]),
        ("install.find-links='x'", 0, 0, [ASKED[0], BY_PIP]),
    ],
    ids=[
        "uv",
        "uv fails",
        "no uv",
        "another index",
        "another index by its variable",
        "one more index",
        "a folder",
    ],
)
def test_uv_installs_where_it_does_what_pip_would(
    config: str, no_uv: int, uv_fails: int, calls: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("pip", "uv"):
        (tmp_path / "bin" / name).write_text(FAKE)
        (tmp_path / "bin" / name).chmod(0o755)
    told = {
        "CALLS": str(tmp_path / "calls"),
        "CONFIG": config,
        "NO_UV": str(no_uv),
        "UV_FAILS": str(uv_fails),
    }
    answer = subprocess.run([SCRIPT, tmp_path, "--editable", ".[a]"], env={**os.environ, **told}, check=False)
    assert answer.returncode == 0
    found = (tmp_path / "calls").read_text().splitlines()
    assert found == [call.format(env=tmp_path) for call in calls]
