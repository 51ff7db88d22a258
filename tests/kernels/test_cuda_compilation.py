"""The CUDA kernels compiled for real, for every architecture of a release: nothing spilled, shared memory fits.

One translation unit of all kernels, without torch's headers, so that it takes seconds.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "cuda"
ARCHITECTURES = (80, 90, 100)
MOST_STATIC_SHARED = 48 * 1024


def find_nvcc() -> str:
    """An nvcc that knows all architectures, or a skipped test."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [f"{home}/bin/nvcc" for home in homes if home] + [shutil.which("nvcc") or ""]
    nvcc = next((place for place in places if os.access(place, os.X_OK)), None)
    if nvcc is None:
        pytest.skip("no nvcc: set CUDA_HOME to compile the CUDA kernels")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    missing = [f"sm_{architecture}" for architecture in ARCHITECTURES if f"sm_{architecture}" not in known]
    if missing:
        pytest.skip(f"{nvcc} does not compile for {', '.join(missing)}")
    return nvcc


def kernel_headers() -> list[pathlib.Path]:
    """The headers of device code: all but those of the host's side."""
    return [
        path
        for path in sorted(CUDA.glob("*.cuh"))
        if not re.search(r'#include [<"](torch/|launch\.cuh)', path.read_text())
    ]


def translation_unit() -> str:
    """Includes every kernel, and names the instances of kernel templates that the launches use."""
    text = "".join(f'#include "{path}"\n' for path in kernel_headers())
    launches = "".join(path.read_text() for path in sorted(CUDA.glob("*.cu")))
    used = sorted(set(re.findall(r"\b\w+_kernel<[^<>()]+>", launches)))
    return f"{text}using namespace snnet;\n" + "".join(
        f"void* used{number} = reinterpret_cast<void*>(&{instance});\n"
        for number, instance in enumerate(used)
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """What ptxas says of every kernel and architecture."""
    nvcc = find_nvcc()
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cu").write_text(translation_unit())
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    flags = ["-std=c++20", "-O3", "--threads", "2", "-Xptxas", "-v", "-c", "kernels.cu", "-o", "kernels.o"]
    result = subprocess.run([nvcc, *targets, *flags], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_kernels_neither_spill_nor_exceed_shared_memory(report):
    kernels = set(re.findall(r"\b(\w+_kernel)\(", "".join(path.read_text() for path in kernel_headers())))
    entries = re.findall(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used \d+ registers([^\n]*)",
        report,
        re.DOTALL,
    )
    for architecture in ARCHITECTURES:
        compiled = [entry for entry in entries if int(entry[1]) == architecture]
        names = {kernel for kernel in kernels for entry in compiled if f"{len(kernel)}{kernel}" in entry[0]}
        assert names == kernels
        for name, _, stack, stores, loads, resources in compiled:
            assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{name} uses local memory"
            shared = re.search(r"(\d+) bytes smem", resources)
            assert shared is None or int(shared[1]) <= MOST_STATIC_SHARED, name
