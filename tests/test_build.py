"""The build: which torch it takes, and what stays when nothing can be compiled."""

import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

import snnet_kernels as sk
from snnet.retrieval import compiled

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def backend(monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(ROOT / "build_backend"))
    import snnet_build

    return snnet_build


def fake_torch(folder: pathlib.Path, version: str) -> None:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    (folder / "torch" / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")


@pytest.mark.parametrize(("version", "taken"), [("2.10.0", True), ("2.14.1+cu130", True), ("2.9.1", False)])
def test_torch_of_the_target_environment_is_taken_if_recent(backend, monkeypatch, tmp_path, version, taken):
    fake_torch(tmp_path, version)
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(tmp_path))
    assert backend.target_site_packages() == (str(tmp_path) if taken else None)
    required = [entry for entry in backend.get_requires_for_build_wheel() if entry.startswith("torch")]
    assert required == ([] if taken else ["torch>=2.10"])


def test_torch_is_required_where_none_is(backend, monkeypatch, tmp_path):
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "torch>=2.10" in backend.get_requires_for_build_editable()


def test_failing_compiler_leaves_pure_python_and_says_so(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "build", "*.so", "tests")
    )
    environment = {**os.environ, "CC": "false", "CXX": "false", "SNNET_CUDA": "0"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WARNING") == 1
    for name in ("snnet_kernels._C", "snnet._rank_metrics"):
        assert f"{name} (" in result.stderr
    assert not list(tmp_path.glob("out/**/*.so"))


def test_forced_cuda_is_fatal_where_it_cannot_be_built(tmp_path):
    pytest.importorskip("setuptools")
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "SNNET_CUDA": "1"}
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode != 0
    assert "SNNET_CUDA=1, but" in result.stderr


@pytest.mark.parametrize(("jobs", "units"), [("1", 1), ("2", 2), ("64", 3)])
def test_cuda_sources_are_compiled_in_as_many_units_as_jobs(jobs, units, monkeypatch, tmp_path, capsys):
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    monkeypatch.setenv("SNNET_CUDA", "0")
    monkeypatch.setenv("MAX_JOBS", jobs)
    monkeypatch.chdir(ROOT)
    build = runpy.run_path("setup.py")["OptionalBuild"](setuptools.Distribution())
    build.build_temp = str(tmp_path)
    sources = [f"csrc/cuda/{name}" for name in ("label_memory.cu", "loss.cu", "neighbors.cu", "describe.cpp")]
    for _ in range(2):  # a second build finds the units of the first
        extension = setuptools.Extension("snnet_kernels._C_cuda", sources)
        build._unite(extension)
    made = sorted((tmp_path / "units" / "snnet_kernels._C_cuda").iterdir())
    assert extension.sources == ["csrc/cuda/describe.cpp", *map(str, made)] and len(made) == units
    named = [line for unit in made for line in unit.read_text().splitlines()]
    assert sorted(named) == [f'#include "{ROOT / source}"' for source in sources[:3]]


# In place of a compiler: an object is empty, a library is the one that is there. What is not for a file is answered
# by the compiler itself, as its version is.
INSTEAD = """#!/bin/sh
for word; do
  case "$previous" in -o) output=$word ;; -MF) : > "$word" ;; esac
  previous=$word
done
case "$output" in
  *.o) : > "$output" ;;
  *_C.*so) cp '{kernels}' "$output" ;;
  *_rank_metrics.*so) cp '{metrics}' "$output" ;;
  *) exec c++ "$@" ;;
esac
"""


def test_libraries_are_built_in_place_where_setuptools_is_old(tmp_path):
    """One that knows no SPDX licence, as on machines without a network: it is not asked to read pyproject.toml."""
    (tmp_path / "sitecustomize.py").write_text(
        "import setuptools\n"
        "from setuptools.config import pyprojecttoml\n"
        "setuptools.__version__ = '70.3.0'\n"
        "del pyprojecttoml.apply_configuration\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "setup.py", "--name"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "SNNET_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stdout.split()[-1] == "snnet", result.stderr


def test_wheel_holds_everything(tmp_path):
    """What `pip install .` puts into an environment, seen from another folder; its libraries are those of here."""
    kernels, metrics = sk.backend_info().libraries[0].path, compiled.native
    if kernels is None or metrics is None or shutil.which("c++") is None:
        pytest.skip("the compiled libraries are not here")
    instead = tmp_path / "instead"
    instead.write_text(INSTEAD.format(kernels=kernels, metrics=metrics.__file__))
    instead.chmod(0o755)
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "build", "*.so", "tests")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
    ]
    environment = {**os.environ, "SNNET_CUDA": "0", "CXX": str(instead), "CC": str(instead)}
    subprocess.run([*command, source], env=environment, check=True, capture_output=True, timeout=900)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    needed_files = ("snnet/config/presets/synthetic.yaml", "snnet/py.typed", "snnet_kernels/py.typed")
    for needed in (*needed_files, "snnet/reporting/page.html", "snnet/reporting/page.css"):
        assert needed in names
    assert len([name for name in names if name.endswith(".so")]) == 2
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "csrc"))]
    code = "import snnet, snnet_kernels as sk; print(sk.__file__, sk.backend_info().libraries[0].loaded)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(tmp_path / "site" / "snnet_kernels" / "__init__.py"), "True"]
