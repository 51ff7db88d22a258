"""Which file of a compiled library is loaded: beside the package, of an installed one, of the right sources."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import snnet_kernels as sk
from snnet.retrieval import compiled
from snnet_kernels.libraries import SOURCES, compiled_from, find_libraries, load_library, sources_digest
from tests.forks import python
from tests.paths import ROOT

CSRC = ROOT / "csrc"
ENDING, OTHER_PYTHON = EXTENSION_SUFFIXES[0], ".cpython-39-x86_64-linux-gnu.so"


def library(folder: Path, digest: str | None, ending: str = ENDING) -> Path:
    """A file in place of a library, with the mark of its sources."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"_C{ending}"
    path.write_bytes(b"\x7fELF\0" + (f"snnet-sources:{digest}\0".encode() if digest else b""))
    return path


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with sources beside it and no library, and an empty folder ``site`` on the path."""
    for part in SOURCES["_C"]:
        (tmp_path / "checkout" / "csrc" / part).mkdir(parents=True)
        (tmp_path / "checkout" / "csrc" / part / "a.h").write_text("int a;\n")
    (tmp_path / "checkout" / "snnet_kernels").mkdir()
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "site"), "missing.zip"])
    monkeypatch.chdir(tmp_path / "checkout")  # which the first entry stands for
    return tmp_path / "checkout"


def find(root: Path) -> list[Path]:
    return find_libraries("_C", root / "snnet_kernels")


def test_the_digest_follows_every_source_and_nothing_else(checkout):
    csrc = checkout / "csrc"
    digest = sources_digest("_C", csrc)
    assert digest is not None and len(digest) == 64
    (csrc / "common" / "a.h.orig").write_text("a backup")
    (csrc / "cuda").mkdir()
    (csrc / "cuda" / "b.cu").write_text("of another library")
    assert sources_digest("_C", csrc) == digest
    (csrc / "cpu" / "a.h").rename(csrc / "cpu" / "b.h")
    renamed = sources_digest("_C", csrc)
    (csrc / "cpu" / "b.h").write_text("int b;\n")
    assert len({digest, renamed, sources_digest("_C", csrc)}) == 3
    assert sources_digest("_rank_metrics", csrc) is None


def test_a_checkout_takes_an_installed_library_of_its_sources(checkout, tmp_path):
    digest = sources_digest("_C", checkout / "csrc")
    installed = library(tmp_path / "site" / "snnet_kernels", digest)
    assert find(checkout) == [installed]
    library(checkout / "snnet_kernels", "0" * 64)  # left by an earlier editable install
    assert find(checkout) == [installed]
    in_place = library(checkout / "snnet_kernels", digest)
    assert find(checkout) == [in_place, installed]


@pytest.mark.parametrize("digest", ["0" * 64, None], ids=["other", "unmarked"])
@pytest.mark.parametrize(("where", "command"), [("site", "pip install ."), ("checkout", "pip install -e .")])
def test_a_library_of_other_sources_is_refused_and_the_remedy_named(
    checkout, tmp_path, where, command, digest
):
    stale = library(tmp_path / where / "snnet_kernels", digest)
    with pytest.raises(ImportError) as refused:
        find(checkout)
    assert str(refused.value) == (
        f"not usable: {stale} was compiled from other sources than {checkout / 'csrc'} "
        f"(run `{command}` in {checkout})"
    )


def test_an_installed_package_takes_its_own_library_only(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other")])
    library(tmp_path / "other" / "snnet_kernels", "0" * 64)
    (tmp_path / "site" / "snnet_kernels").mkdir(parents=True)
    (tmp_path / "site" / "csrc").mkdir()  # another package's
    with pytest.raises(ImportError, match=r"^not built for this Python \(`pip install -v \.` builds it"):
        find(tmp_path / "site")
    with pytest.raises(ImportError, match=r"^not built for this Python, and needed on a GPU only \(`pip "):
        find_libraries("_C_cuda", tmp_path / "site" / "snnet_kernels")
    own = library(tmp_path / "site" / "snnet_kernels", None)
    assert find(tmp_path / "site") == [own]


def test_libraries_of_another_python_are_left_alone(checkout):
    digest = sources_digest("_C", checkout / "csrc")
    library(checkout / "snnet_kernels", digest, OTHER_PYTHON)
    with pytest.raises(ImportError, match="not built for this Python"):
        find(checkout)
    shared = library(checkout / "snnet_kernels", digest, ".abi3.so")
    assert find(checkout) == [shared]


def test_the_next_file_is_tried_where_one_does_not_load(checkout, tmp_path):
    digest = sources_digest("_C", checkout / "csrc")
    broken = library(checkout / "snnet_kernels", digest)  # say, of another processor
    good = library(tmp_path / "site" / "snnet_kernels", digest)

    def load(path: Path) -> int:
        if path == broken:
            raise OSError("wrong ELF class")
        return 7

    assert load_library("_C", checkout / "snnet_kernels", load) == (good, 7)
    good.unlink()
    with pytest.raises(ImportError, match=f"^{broken} does not load: wrong ELF class$"):
        load_library("_C", checkout / "snnet_kernels", load)


BUILT = {library.name: library for library in sk.backend_info().libraries}["_C"]
PROGRAM = (
    "import snnet_kernels as sk; print(sk.__file__, sk.backend_info().libraries[0].path);"
    "from snnet.retrieval.compiled import native as m; print(m and m.__file__)"
)


@pytest.mark.skipif(not BUILT.loaded, reason="the CPU library is not loaded")
@pytest.mark.parametrize("changed", [False, True], ids=["installed", "sources changed since"])
def test_python_started_in_a_checkout(tmp_path, changed):
    """The real libraries, installed beside a checkout that has none."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    leave_out = shutil.ignore_patterns("*.so", "__pycache__", "data", "synthetic", "triton")
    for part in ("csrc", "snnet_kernels", "snnet"):
        shutil.copytree(ROOT / part, checkout / part, ignore=leave_out)
    modules = [Path(compiled.native.__file__)] if compiled.native else []
    for path in [BUILT.path, *modules]:
        (site / path.parent.name).mkdir(parents=True)
        shutil.copy(path, site / path.parent.name)
    if changed:
        (checkout / "csrc" / "common" / "bits.h").write_text("// changed")
    answer = python("-c", PROGRAM, environment={**os.environ, "PYTHONPATH": str(site)}, folder=checkout)
    assert answer.returncode == 0, answer.stderr
    kernels = site / "snnet_kernels" / BUILT.path.name
    loaded = None if changed else kernels
    metrics = site / "snnet" / modules[0].name if modules else None
    package = checkout / "snnet_kernels" / "__init__.py"
    assert answer.stdout == f"{package} {loaded}\n{metrics}\n"
    warned = answer.stderr.splitlines()
    if not changed:
        assert warned == []
        return
    (line,) = warned
    assert line == (
        f"{checkout / 'snnet_kernels' / 'backends' / 'loaded.py'}:0: UserWarning: snnet_kernels: the compiled "
        f"library _C is not usable: {kernels} was compiled from other sources than {checkout / 'csrc'} "
        f"(run `pip install .` in {checkout}); plain PyTorch serves"
    )


@pytest.mark.skipif(not BUILT.loaded, reason="the CPU library is not loaded")
def test_a_built_library_carries_the_digest_of_its_sources():
    assert compiled_from(BUILT.path) == sources_digest("_C", CSRC)
