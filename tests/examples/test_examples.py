"""The examples run, and their fused and un-fused forms agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.parametrize(
    ("name", "comparisons"), [("mmcl_trainer", 1), ("snnet_loop", 1), ("cluster_trainer", 2)]
)
def test_example(name, comparisons):
    command = [sys.executable, f"examples/{name}.py", "--images", "160", "--epochs", "2", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss (\d+\.\d+)", answer.stdout, re.MULTILINE)]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    assert len(re.findall(r"un-fused: \d+\.\d times as fast", answer.stdout)) == comparisons
    pairs = re.findall(r"the same results: (\S+) and (\S+)", answer.stdout)
    assert len(pairs) == comparisons
    for fused, unfused in pairs:
        assert float(fused) == pytest.approx(float(unfused), rel=1e-5)
