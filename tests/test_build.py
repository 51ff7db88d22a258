"""The build: which torch it takes, and what stays when nothing can be compiled."""

import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import zipfile
from unittest import mock

import pytest
import torch
import torch.utils.cpp_extension

import snnet_kernels as sk
from snnet.retrieval import compiled
from tests.forks import Answer, python
from tests.paths import ROOT

SOURCES = (
    *("csrc", "build_backend", "snnet", "snnet_kernels"),
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
)

# In place of the interpreter and of the installer that make calls, and of gcc, which it asks for libraries.
BUILDS = """#!/bin/sh
case "$0 $*" in
  *gcc*) ;;
  *setup.py*) echo "built with SNNET_CPU=$SNNET_CPU"; [ "$BUILDS" ] && mkdir -p build/sanitize/lib ;;
  *install.sh*)
    for file in $PIP_CONSTRAINT; do [ -e "$file" ] && echo "constraints: $file found"; done
    case "$*" in *--editable*) echo "built with SNNET_CPU=$SNNET_CPU"; [ "$BUILDS" ] ;; esac ;;
  *pytest*) shift 5; printf '[%s]' "$@" ;;
esac
"""


def run_setup(*arguments: str, folder: pathlib.Path = ROOT, before: str = "", **environment: str) -> Answer:
    """``python setup.py ARGUMENTS`` in a folder, after the statements ``before``."""
    words = ["setup.py", *arguments]
    program = f"{before}\nimport runpy, sys\nsys.argv[:] = {words!r}\nrunpy.run_path('setup.py', run_name='__main__')"
    return python("-c", program, environment={**os.environ, **environment}, folder=folder)


def copy_sources(folder: pathlib.Path) -> None:
    """What is built from, and nothing else that lies in a checkout: data, environments, links to nowhere."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder)


@pytest.fixture
def backend(monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(ROOT / "build_backend"))
    import snnet_build

    return snnet_build


@pytest.fixture
def checkout(tmp_path):
    """A folder that has only what make's rules ask for, and where no build succeeds but with BUILDS=1."""
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    folder = tmp_path / "a checkout"
    for name in (
        *("csrc/cpu/loss.cpp", "build_backend/snnet_build.py", "pyproject.toml", "setup.py"),
        *("constraints.txt", ".venv/.installed", ".venv/.lint-tools"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    shutil.copy(ROOT / "Makefile", folder)
    for name in (".venv/bin/python", ".venv/bin/gcc", "scripts/install.sh"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(BUILDS)
        (folder / name).chmod(0o755)
    return folder


def make(folder: pathlib.Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    here = {name: value for name, value in os.environ.items() if name not in ("SNNET_CPU", "MAKEFLAGS")}
    here["PATH"] = f"{folder}/.venv/bin{os.pathsep}{here['PATH']}"
    command = ["make", *words]
    return subprocess.run(command, env=here | environment, cwd=folder, capture_output=True, text=True)


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
    (tmp_path / "torch" / "lib").mkdir(parents=True)  # what an uninstall may leave
    assert "torch>=2.10" in backend.get_requires_for_build_editable()


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_one_build_of_a_checkout_at_a_time(hook, backend, monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.chdir(tmp_path)

    def is_locked() -> bool:
        with open(tmp_path / "build" / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    seen = []

    def build(folder: str, *_: object) -> str:
        seen.append(is_locked())
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
            archive.writestr("snnet_kernels/__init__.py", "")
        return "a.whl"

    monkeypatch.setattr(backend.build_meta, hook, build)
    assert getattr(backend, hook)(str(tmp_path)) == "a.whl"
    assert seen == [True] and not is_locked()


def test_a_wheel_without_modules_is_an_error(backend, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    zipfile.ZipFile(tmp_path / "a.whl", "w").close()
    monkeypatch.setattr(backend.build_meta, "build_wheel", lambda *_: "a.whl")
    with pytest.raises(
        SystemExit, match=r"^a\.whl has no snnet_kernels/__init__\.py: the folder build was changed"
    ):
        backend.build_wheel(str(tmp_path))


def test_failing_compiler_leaves_pure_python_and_says_so(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    copy_sources(source)
    words = ("build_ext", "--build-lib", str(tmp_path / "out"))
    result = run_setup(*words, folder=source, CC="false", CXX="false", SNNET_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WARNING") == 1
    for name in ("snnet_kernels._C", "snnet._rank_metrics"):
        assert f"{name} (" in result.stderr
    assert not list(tmp_path.glob("out/**/*.so"))


def test_a_failure_is_fatal_where_the_libraries_of_the_cpu_are_needed(tmp_path):
    pytest.importorskip("setuptools")
    words = ("build_ext", "--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "out"))
    result = run_setup(*words, CC="false", CXX="false", SNNET_CPU="1", SNNET_CUDA="0")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("SNNET_CPU=1, but snnet_kernels._C cannot be compiled: ")


def test_make_needs_the_libraries_of_the_cpu(checkout):
    for words, given, got in (
        (("--always-make", ".venv/.installed"), {}, "1"),
        (("--always-make", ".venv/.installed"), {"SNNET_CPU": "auto"}, "auto"),
        (("test-sanitize",), {"SNNET_CPU": "auto"}, "1"),
    ):
        answer = make(checkout, *words, "--silent", "PYTHON=true", **given)
        assert answer.returncode == 2 and f"built with SNNET_CPU={got}\n" in answer.stdout


def test_no_library_of_an_earlier_build_is_tested(checkout):
    """Where the build fails none is left, and make ends."""
    earlier = checkout / "build" / "sanitize" / "lib" / "snnet_kernels" / "_C.abi3.so"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert make(checkout, "test-sanitize").returncode == 2
    assert not earlier.exists()


def test_make_builds_again_after_a_change_or_clean_but_not_for_bytecode(checkout):
    marks = checkout / ".venv" / ".installed", checkout / ".venv" / ".lint-tools"

    def up_to_date() -> bool:
        return (
            make(checkout, "--question", *(str(mark.relative_to(checkout)) for mark in marks)).returncode == 0
        )

    bytecode = checkout / "build_backend" / "__pycache__" / "snnet_build.pyc"
    source = checkout / "csrc" / "cpu" / "loss.cpp"
    bytecode.parent.mkdir()
    bytecode.touch()
    newer = os.stat(marks[1]).st_mtime + 60
    os.utime(bytecode, (newer, newer))
    assert up_to_date()
    os.utime(source, (newer, newer))
    assert not up_to_date()
    for mark in marks:
        os.utime(mark, (newer, newer))
    assert up_to_date()
    assert make(checkout, "clean").returncode == 0
    assert not up_to_date() and not any(mark.exists() for mark in marks)
    assert source.exists() and not bytecode.exists()


def test_the_path_of_a_checkout_may_have_a_space(checkout):
    answer = make(checkout, "--always-make", "--silent", "PYTHON=true", ".venv/.installed", BUILDS="1")
    assert answer.returncode == 0 and answer.stdout.count("constraints: constraints.txt found\n") == 2, answer
    answer = make(checkout, "--silent", "test-sanitize", BUILDS="1", ARGS="-k a")
    assert answer.returncode == 0, answer
    assert answer.stdout.splitlines()[-1] == f"[{checkout}/tests/kernels][-k][a]"


def test_forced_cuda_is_fatal_where_it_cannot_be_built(tmp_path):
    pytest.importorskip("setuptools")
    result = run_setup("--version", CUDA_HOME=str(tmp_path), SNNET_CUDA="1")
    assert result.returncode != 0
    assert "SNNET_CUDA=1, but" in result.stderr


@pytest.mark.parametrize(
    ("release", "known", "chosen", "compiled"),
    [
        ("12.6", "75 80 90", None, "8.0;9.0+PTX"),
        ("12.8", "75 80 90 100", None, "8.0;9.0;10.0+PTX"),
        ("12.6", "75 80 90", "7.5", "7.5"),
    ],
)
def test_cuda_is_compiled_for_what_nvcc_knows(release, known, chosen, compiled, monkeypatch, tmp_path):
    pytest.importorskip("setuptools")
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo release {release} || printf 'compute_%s\\n' {known}\n"
    )
    nvcc.chmod(0o755)
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", release)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ, CUDA_HOME=str(tmp_path), SNNET_CUDA="1"):
        os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
        if chosen:
            os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
        runpy.run_path("setup.py")
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == compiled


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
  case "$previous" in -o) output=$word ;; -MF) depends=$word ;; esac
  case "$word" in *.cpp) source=$word ;; esac
  previous=$word
done
case "$output" in
  *.o) : > "$output"; echo "$output: $source" > "$depends"; echo "${{source##*/}}" >> '{log}' ;;
  *_C.*so) cp '{kernels}' "$output" ;;
  *_rank_metrics.*so) cp '{metrics}' "$output" ;;
  *) exec c++ "$@" ;;
esac
"""


@pytest.fixture
def instead(tmp_path):
    """The environment of a build by ``INSTEAD``; it names what it compiles in ``tmp_path/log``."""
    kernels, metrics = sk.backend_info().libraries[0].path, compiled.native
    if kernels is None or metrics is None or shutil.which("c++") is None:
        pytest.skip("the compiled libraries are not here")
    compiler, log = tmp_path / "instead", tmp_path / "log"
    compiler.write_text(INSTEAD.format(kernels=kernels, metrics=metrics.__file__, log=log))
    compiler.chmod(0o755)
    return {"SNNET_CUDA": "0", "SNNET_CPU": "1", "CXX": str(compiler), "CC": str(compiler)}


def test_a_changed_source_is_compiled_whatever_its_time(tmp_path, instead):
    """Also one with an older time, as `rsync -a` leaves it."""
    pytest.importorskip("setuptools")
    pytest.importorskip("ninja")
    folder, log = tmp_path / "source", tmp_path / "log"
    copy_sources(folder)
    loss = folder / "csrc" / "cpu" / "loss.cpp"
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of ninja

    def compiled_now() -> set[str]:
        log.write_text("")
        words = ("build_ext", "--build-lib", str(tmp_path / "out"))
        result = run_setup(*words, folder=folder, PATH=path, **instead)
        assert result.returncode == 0, result.stderr
        return set(log.read_text().split())

    assert loss.name in compiled_now()
    assert compiled_now() == set()
    with loss.open("a") as file:
        file.write("// changed\n")
    os.utime(loss, (1.0e9, 1.0e9))
    assert compiled_now() == {loss.name}
    assert compiled_now() == set()
    header = folder / "csrc" / "common" / "bits.h"  # of two libraries
    with header.open("a") as file:
        file.write("// changed\n")
    edited = header.stat().st_mtime_ns
    compiled_now()
    assert header.stat().st_mtime_ns == edited


OLD_SETUPTOOLS = """
import setuptools
from setuptools.config import pyprojecttoml
setuptools.__version__ = '70.3.0'
del pyprojecttoml.apply_configuration
"""


def test_libraries_are_built_in_place_where_setuptools_is_old():
    """One that knows no SPDX licence, as on machines without a network: it is not asked to read pyproject.toml."""
    result = run_setup("--name", before=OLD_SETUPTOOLS, SNNET_CUDA="0")
    assert result.returncode == 0 and result.stdout.split()[-1] == "snnet", result.stderr


@pytest.mark.parametrize(("missing", "copies"), [("pybind11", 1), ("pybind11 torch", 0)])
def test_without_pybind11_its_headers_are_those_of_torch(missing, copies, monkeypatch, tmp_path):
    """Where torch is not there either, the library is one that cannot be compiled."""
    pytest.importorskip("setuptools")
    for name in missing.split():
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    monkeypatch.setenv("SNNET_CUDA", "0")
    monkeypatch.chdir(ROOT)
    *_, metrics = runpy.run_path("setup.py")["extensions"]()
    assert metrics.name == "snnet._rank_metrics"
    headers = [
        folder
        for folder in metrics.include_dirs
        if (pathlib.Path(folder) / "pybind11" / "pybind11.h").exists()
    ]
    assert len(headers) == copies


def test_wheel_holds_everything(tmp_path, instead):
    """The wheel that `pip install .` has made, seen from another folder; its libraries are those of here."""
    source = tmp_path / "source"
    copy_sources(source)
    program = (
        "import os, sys; sys.path.insert(0, 'build_backend')\n"
        f"import snnet_build; print(os.path.basename(snnet_build.build_wheel({str(tmp_path)!r})))"
    )
    result = python("-c", program, environment=os.environ | instead, folder=source)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert result.stdout.splitlines()[-1] == wheel.name
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
    result = python("-c", code, environment=environment, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "site" / "snnet_kernels" / "__init__.py"), "True"]
