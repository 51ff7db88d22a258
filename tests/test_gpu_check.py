"""The script for machines with a GPU: its usage, and that it never reports success without one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.paths import ROOT

SCRIPTS = ROOT / "scripts"


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        [str(SCRIPTS / "gpu_check.sh"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )


def test_usage():
    result = run()
    assert result.returncode == 2 and "scripts/gpu_check.sh OUT [PHASE]" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_passes(tmp_path):
    result = run(str(tmp_path), "tests")
    assert result.returncode == 3 and "sees no CUDA device" in result.stderr
    assert not list(tmp_path.iterdir())


def test_summary_counts_what_ran(tmp_path):
    cases = '<testcase name="a" time="0.5"/><testcase name="b" time="1"><failure/></testcase>'
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    (tmp_path / "tests.log").write_text("")
    command = [
        sys.executable,
        str(SCRIPTS / "gpu_summary.py"),
        "tests",
        str(tmp_path),
        "--status=1",
        "--seconds=2",
    ]
    subprocess.run(command, check=True, timeout=900)
    table = (tmp_path / "tests.txt").read_text().splitlines()
    assert table[0] == "tests: failed with status 1 after 2 s"
    assert table[2:] == ["1 failure, 1 passed", "  failure: b"]
    result = json.loads((tmp_path / "tests.json").read_text())
    assert [test["outcome"] for test in result["tests"]] == ["passed", "failure"]
    assert not (tmp_path / "tests.xml").exists()
