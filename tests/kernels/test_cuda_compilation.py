"""The CUDA kernels compiled for real, for every architecture of a release and the lowest: nothing spilled, shared
memory fits.

Those of the built library; for what it lacks one translation unit of all kernels, without torch's headers, so that it
takes seconds.
"""

import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Collection
from typing import NamedTuple

import pytest

import snnet_kernels as sk
from tests.paths import ROOT

CUDA = ROOT / "csrc" / "cuda"
ARCHITECTURES = (75, 80, 90, 100)
MOST_STATIC_SHARED = 48 * 1024


class Kernel(NamedTuple):
    """What a kernel takes on an architecture; a register that is spilled has a place in the stack frame."""

    name: str
    architecture: int
    stack: int
    shared: int
    local: int


def find_nvcc(architectures: Collection[int] = (90,)) -> str:
    """An nvcc that knows these architectures, or a skipped test."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [f"{home}/bin/nvcc" for home in homes if home] + [shutil.which("nvcc") or ""]
    nvcc = next((place for place in places if os.access(place, os.X_OK)), None)
    if nvcc is None:
        pytest.skip("no nvcc: set CUDA_HOME to compile the CUDA kernels")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    missing = [f"sm_{architecture}" for architecture in architectures if f"sm_{architecture}" not in known]
    if missing:
        pytest.skip(f"{nvcc} does not compile for {', '.join(missing)}")
    return nvcc


@functools.cache
def find_cuobjdump() -> str:
    """That of a toolkit or of Triton, or a skipped test."""
    if (found := shutil.which("cuobjdump")) is not None:
        return found
    if importlib.util.find_spec("triton") is not None:
        from triton import knobs

        if os.access(knobs.nvidia.cuobjdump.path, os.X_OK):
            return knobs.nvidia.cuobjdump.path
    pytest.skip("no cuobjdump")


def kernel_headers() -> list[pathlib.Path]:
    """The headers of device code: all but those of the host's side."""
    return [
        path
        for path in sorted(CUDA.glob("*.cuh"))
        if not re.search(r'#include [<"](torch/|launch\.cuh)', path.read_text())
    ]


def named_kernels() -> set[str]:
    return set(re.findall(r"\b(\w+_kernel)\(", "".join(path.read_text() for path in kernel_headers())))


def translation_unit() -> str:
    """Includes every kernel and names it, of kernel templates the instances that the launches use."""
    text = "".join(f'#include "{path}"\n' for path in kernel_headers())
    launches = "".join(path.read_text() for path in sorted(CUDA.glob("*.cu")))
    instances = set(re.findall(r"\b\w+_kernel<[^<>()]+>", launches))
    used = sorted(instances | named_kernels() - {instance.partition("<")[0] for instance in instances})
    return f"{text}using namespace snnet;\n" + "".join(
        f"void* used{number} = reinterpret_cast<void*>(&{instance});\n"
        for number, instance in enumerate(used)
    )


def compiled_kernels(folder: pathlib.Path, architectures: Collection[int]) -> pathlib.Path:
    """The object file of all kernels."""
    nvcc = find_nvcc(architectures)
    (folder / "kernels.cu").write_text(translation_unit())
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    flags = ("-std=c++20", "-O3", "--threads", "2")
    command = [nvcc, *targets, *flags, "-c", "kernels.cu", "-o", "kernels.o"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "kernels.o"


def kernels_of(binary: pathlib.Path) -> list[Kernel]:
    """The kernels in a library or an object file."""
    command = [find_cuobjdump(), "--dump-resource-usage", str(binary)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for part in re.split(r"^arch = sm_", report, flags=re.MULTILINE)[1:]:
        architecture = int(re.match(r"\d+", part)[0])
        for name, taken in re.findall(r"Function (\w+):\n(.*)", part):
            numbers = [int(re.search(rf"\b{what}:(\d+)", taken)[1]) for what in ("STACK", "SHARED", "LOCAL")]
            found.append(Kernel(name, architecture, *numbers))
    return found


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> list[Kernel]:
    library = {library.name: library.path for library in sk.backend_info().libraries}["_C_cuda"]
    built = [] if library is None else kernels_of(library)
    missing = sorted(set(ARCHITECTURES) - {kernel.architecture for kernel in built})
    return built + (
        kernels_of(compiled_kernels(tmp_path_factory.mktemp("kernels"), missing)) if missing else []
    )


def test_kernels_neither_spill_nor_exceed_shared_memory(kernels):
    named = named_kernels()
    for architecture in ARCHITECTURES:
        compiled = [kernel for kernel in kernels if kernel.architecture == architecture]
        assert {name for name in named for kernel in compiled if f"{len(name)}{name}" in kernel.name} == named
        for kernel in compiled:
            assert (kernel.stack, kernel.local) == (0, 0), f"{kernel.name} uses local memory"
            assert kernel.shared <= MOST_STATIC_SHARED, kernel.name


def test_sources_that_include_the_same_kernels_can_be_linked():
    """They are compiled in as many units as there are processors: no unit gives a kernel of a header to the others."""
    own = [
        (path.name, before)
        for path in kernel_headers()
        for before in re.findall(r"^(.*)__global__", path.read_text(), re.MULTILINE)
        if "static" not in before
    ]
    templates = [
        path.name
        for path in kernel_headers()
        for _ in re.findall(r"^template <.*>\n__global__", path.read_text(), re.MULTILINE)
    ]
    assert [name for name, _ in own] == templates and len(templates) == 2


def test_a_blend_is_no_fused_multiply_add(tmp_path):
    """All kernels that blend rows write the same bits: those of the update alone, and of the one that lists follow."""
    (tmp_path / "blend.cu").write_text(
        f'#include "{ROOT}/csrc/common/recurrence.h"\n'
        "__global__ void blend(float* x) { *x = snnet::blended(x[1], x[2], x[3], x[4]); }\n"
    )
    command = [find_nvcc(), "-arch=sm_90", "-std=c++20", "-O3", "-ptx", "blend.cu", "-o", "blend.ptx"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "blend.ptx").read_text()
    assert written.count("mul.rn.f32") == 2 and "fma" not in written
