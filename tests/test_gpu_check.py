"""The script for machines with a GPU: its steps with an interpreter that only says what it was asked."""

import os
import re
import runpy
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from _pytest.mark.expression import Expression

from tests.forks import run_pytest
from tests.paths import ROOT

SCRIPT = str(ROOT / "scripts" / "gpu_check.sh")
PYTHON = """#!/bin/bash
# $CASE: what goes wrong
case "$CASE $*" in
  "no-library -c "*snnet_kernels*) echo "undefined symbol: x" >&2; exit 1 ;;
  *" -c "*capability*) echo 9.0 ;;
  "probe-fails "*gpu_probe.py*) echo "the probe's last words"; exit 5 ;;
  "hangs "*"--size market"*) echo $$ >began.tmp; mv began.tmp "$BEGAN"; exec sleep 300 ;;
  *" -m pytest"*) echo "3 passed" ;;
  *gpu_probe.py*) echo "--- probed" ;;
esac
echo "$*" >>"$CALLS"
"""
STEPS = ["libraries", "tests-small", "probe", "floors-market", "floors-million", "tests-large"]
KERNELS = ["follow_lists_kernel", "mplp_lists_look_kernel", "similarity_kernel", "rank_count_kernel"]


@pytest.fixture
def environment(tmp_path):
    """Of a machine where the script finds a GPU and the tools of one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    other = '#!/bin/bash\necho "$(basename "$0") $*" | tee -a "$CALLS"\n'
    for name, text in {
        "python": PYTHON,
        "nvidia-smi": other,
        "ncu": other,
        "compute-sanitizer": other,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "CASE": "all-is-well",
        "CALLS": str(tmp_path / "calls"),
        "BEGAN": str(tmp_path / "began"),
    }


def run(environment, *arguments) -> tuple[int, list[str], str]:
    """(exit status, "name status" of each step, what was printed)."""
    result = subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=900
    )
    heads = [line.split() for line in result.stdout.splitlines() if line.startswith("== ")]
    return result.returncode, [f"{h[1][:-1]} {h[3]}" for h in heads], result.stdout + result.stderr


def kept(folder) -> dict[str, str]:
    """Name and text of each file of the one archive."""
    assert [path.name for path in folder.iterdir()] == ["gpu_check.tar.gz"]
    with tarfile.open(folder / "gpu_check.tar.gz") as archive:
        return {
            os.path.basename(member.name): archive.extractfile(member).read().decode()
            for member in archive
            if member.isfile()
        }


def test_the_first_call_goes_from_wrong_results_to_stated_figures(environment, tmp_path):
    status, steps, printed = run(environment, tmp_path / "out")
    assert status == 0 and steps == [f"{name} 0" for name in STEPS], printed
    found = kept(tmp_path / "out")
    assert {f"{name}.log" for name in STEPS} < set(found)
    assert found["machine.txt"].startswith("nvidia-smi --query-gpu=name")
    assert found["tests-small.log"] == "3 passed\n" and found["probe.log"] == "--- probed\n"
    calls = (tmp_path / "calls").read_text()
    assert "setup.py" not in calls and calls.count("--floors-only") == 2


def test_a_step_that_fails_does_not_end_the_call(environment, tmp_path):
    status, steps, printed = run({**environment, "CASE": "probe-fails"}, tmp_path / "out")
    assert status == 1 and steps == [f"{name} {5 if name == 'probe' else 0}" for name in STEPS]
    assert "the probe's last words" in printed
    assert kept(tmp_path / "out")["probe.log"] == "the probe's last words\n"


def test_nothing_begins_when_the_time_of_the_call_is_over(environment, tmp_path):
    status, steps, _ = run({**environment, "LIMIT": "0"}, tmp_path / "out")
    assert status == 1 and steps == [f"{name} no" for name in STEPS[:-1]]  # "skipped, no time is left"
    assert set(kept(tmp_path / "out")) == {"machine.txt"}


def test_libraries_are_built_only_where_they_do_not_load(environment, tmp_path):
    status, steps, printed = run({**environment, "CASE": "no-library"}, tmp_path / "out")
    assert status == 0 and steps == [f"{name} 0" for name in ["build", *STEPS]]
    assert "undefined symbol: x" in printed
    assert "setup.py build_ext --inplace" in (tmp_path / "calls").read_text()


def test_a_call_that_is_killed_keeps_what_it_had(environment, tmp_path):
    process = subprocess.Popen(
        [SCRIPT, str(tmp_path / "out")], env={**environment, "CASE": "hangs"}, cwd=tmp_path
    )
    began = tmp_path / "began"
    while not began.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(int(began.read_text()), signal.SIGKILL)
    found = kept(tmp_path / "out")
    assert found["tests-small.log"] == "3 passed\n" and found["probe.log"] == "--- probed\n"
    assert "floors-market.log" not in found


def test_the_second_call_repeats_tests_and_profiles(environment, tmp_path):
    status, steps, printed = run(environment, tmp_path / "out", "second", "tests/kernels/test_gpu.py::test_a")
    expected = ["libraries", "tests-again", *(f"ncu-{name}" for name in KERNELS), "memcheck"]
    assert status == 0 and steps == [f"{name} 0" for name in expected], printed
    calls = (tmp_path / "calls").read_text()
    assert "--durations 8 tests/kernels/test_gpu.py::test_a\n" in calls
    for name in KERNELS:
        assert f"ncu --kernel-name {name} " in calls
    assert calls.count(" --clock-control none ") == len(KERNELS)
    assert "compute-sanitizer --tool memcheck" in calls and calls.rstrip().endswith("-k small and 7-3")


@pytest.mark.parametrize("arguments", [(), ("out", "third")])
def test_usage(arguments, environment):
    status, _, printed = run(environment, *arguments)
    assert (
        status == 2
        and printed.startswith("Checks the package")
        and "scripts/gpu_check.sh OUT second" in printed
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_passes(environment, tmp_path):
    status, steps, printed = run({**environment, "PYTHON": sys.executable}, tmp_path / "out")
    assert status == 3 and steps == [] and "sees no CUDA device" in printed
    assert not list((tmp_path / "out").iterdir())


def test_the_tests_that_it_chooses_are_there():
    files = ("tests/kernels/test_gpu.py", "tests/kernels/test_gpu_head.py")
    listed = run_pytest(*files, "--collect-only")[1].splitlines()
    ids = [line.partition("::")[2] for line in listed if "::" in line]
    expressions = re.findall(r'-k (?:"([^"]+)"|(\S+))', Path(SCRIPT).read_text())
    chosen = {
        words: {
            name for name in ids if Expression.compile(words).evaluate(lambda word, name=name: word in name)
        }
        for words in map("".join, expressions)
    }
    assert set(chosen) == {"not 12936", "12936", "small and 7-3"}
    assert chosen["not 12936"] | chosen["12936"] == set(ids) and len(chosen["12936"]) == 12
    smallest = [name for name in chosen["small and 7-3"] if "[7-3" in name]
    assert len(smallest) == 12 and len(chosen["small and 7-3"]) == 24  # and those of 257-33
    assert {name.partition("[")[0] for name in smallest} == {
        f"test_{name}_small" for name in ("label_memory", "labels", "lists", "loss", "update")
    }


def test_the_options_that_it_gives_are_there():
    words = re.search(r"figures\(\) \{(.*?)\n\}", Path(SCRIPT).read_text(), re.DOTALL)[1]
    options = set(re.findall(r"--[a-z-]+", words))
    ours = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "benchmarks" / "conftest.py").read_text()))
    assert options & ours == {"--device", "--floors-only", "--size"}
    assert options - ours == {"--benchmark-only", "--benchmark-json"}  # of pytest-benchmark


@pytest.fixture(scope="module")
def probe():
    return runpy.run_path(str(ROOT / "scripts" / "gpu_probe.py"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_ncu_looks_for_is_a_kernel_that_the_probe_launches(kernel, probe, monkeypatch):
    sources = [*(ROOT / "csrc" / "cuda").glob("*.cuh"), *(ROOT / "snnet_kernels" / "triton").rglob("*.py")]
    definition = re.compile(rf"(__global__[^;{{]*\s|^def ){kernel}\(", re.MULTILINE)
    assert sum(bool(definition.search(path.read_text())) for path in sources) == 1
    monkeypatch.setattr(sys, "argv", ["gpu_probe.py", "tiny", kernel])
    assert probe["main"]() == 0


def test_the_probe_goes_through_its_parts(probe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_probe.py", "tiny"])
    assert probe["main"]() == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")]
    assert heads == [f"--- {part.__name__}" for part in probe["PARTS"]] and len(heads) == 6
