"""Build of the compiled parts. Everything else is declared in pyproject.toml.

``snnet_kernels._C``       CPU kernels, LibTorch stable ABI
``snnet_kernels._C_cuda``  CUDA kernels, LibTorch stable ABI, where an nvcc fits torch
``snnet._rank_metrics``    counting of ranks, pybind11

Environment: ``SNNET_CUDA=auto|1|0`` (auto: build the CUDA library where it can be, warn where it fails;
1: a failure is fatal; 0: never), ``SNNET_CPU=auto|1`` (the same for the other two), ``TORCH_CUDA_ARCH_LIST``,
``MAX_JOBS``, ``SNNET_SANITIZE=1`` (the CPU library with AddressSanitizer and UndefinedBehaviorSanitizer, for
`make test-sanitize`). A library that cannot be compiled is left out with a warning, and plain Python serves
in its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext


def toolkit_of_nvcc() -> str | None:
    """The CUDA toolkit of the nvcc on the PATH, asked of nvcc itself: what stands there may be a wrapper."""
    if shutil.which("nvcc") is None:
        return None
    plan = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", plan.stderr, re.MULTILINE)
    return os.path.realpath(top.group(1).strip()) if top else None


if not {"CUDA_HOME", "CUDA_PATH"} & os.environ.keys() and (toolkit := toolkit_of_nvcc()) is not None:
    os.environ["CUDA_HOME"] = toolkit  # read by torch at its import

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None

sources_digest = runpy.run_path("snnet_kernels/libraries.py")["sources_digest"]

# One build serves torch 2.10 and later; py_limited_api below makes it serve every CPython from 3.10.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CUDA_ARCHITECTURES = ("8.0", "9.0", "10.0")  # by default, where nvcc knows them; the last one as PTX too
FLAGS = ["-O3", "-std=c++20", "-g0", "-fvisibility=hidden"]
# The compiler must not fuse a product and a sum: it would do so for some instruction sets only. `panels.inl` fuses
# where it wants to.
CPU_FLAGS = ["-ffp-contract=off"]
SANITIZE = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if os.environ.get("SNNET_SANITIZE") else []
)
if SANITIZE:
    CPU_FLAGS += [*SANITIZE, "-fno-omit-frame-pointer", "-O1", "-g1"]
CPU_MODE = os.environ.get("SNNET_CPU", "auto")
if CPU_MODE not in ("auto", "1"):
    raise SystemExit(f"SNNET_CPU must be auto or 1, got {CPU_MODE!r}")
CUDA_MODE = os.environ.get("SNNET_CUDA", "auto")
if CUDA_MODE not in ("auto", "1", "0"):
    raise SystemExit(f"SNNET_CUDA must be auto, 1 or 0, got {CUDA_MODE!r}")


def sources(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path().glob(pattern))


def headers(*parts: str) -> list[str]:
    return sources(*(f"csrc/{part}/*.*{end}" for part in parts for end in ("h", "inl")))


def warn(message: str) -> None:
    print(f"\nWARNING: {message}\n", file=sys.stderr)


def ask_nvcc(question: str) -> str:
    """The answer of the nvcc that torch would use, or nothing."""
    if cpp_extension.CUDA_HOME is None:
        return ""
    command = [os.path.join(cpp_extension.CUDA_HOME, "bin", "nvcc"), question]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def nvcc_version() -> str | None:
    match = re.search(r"release (\d+\.\d+)", ask_nvcc("--version"))
    return match.group(1) if match else None


def default_architectures() -> str:
    """Those that nvcc knows: before CUDA 12.8 that is not 10.0."""
    known = ask_nvcc("--list-gpu-arch").split()
    return (
        ";".join(name for name in CUDA_ARCHITECTURES if f"compute_{name.replace('.', '')}" in known) + "+PTX"
    )


def cuda_extension() -> Extension | None:
    if CUDA_MODE == "0":
        return None
    nvcc = nvcc_version()
    if torch.version.cuda is None:
        reason = "this torch is built without CUDA"
    elif nvcc is None:
        reason = "no nvcc was found (set CUDA_HOME)"
    elif nvcc.split(".")[0] != torch.version.cuda.split(".")[0]:
        reason = f"nvcc {nvcc} does not fit torch's CUDA {torch.version.cuda}"
    else:
        reason = None
    if reason is not None:
        if CUDA_MODE == "1":
            raise SystemExit(f"SNNET_CUDA=1, but {reason}")
        return None
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures())
    build = re.sub(r"[;\s]+", " ", f"CUDA {nvcc} for {architectures}")
    return cpp_extension.CUDAExtension(
        "snnet_kernels._C_cuda",
        sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp"),
        depends=headers("common", "cuda"),
        py_limited_api=True,
        extra_compile_args={
            "cxx": [*FLAGS, TORCH_TARGET, "-DUSE_CUDA", f"-DSNNET_CUDA_BUILD={build}"],
            "nvcc": ["-O3", "-std=c++20", "-DUSE_CUDA", TORCH_TARGET],
        },
        extra_link_args=["-s"],
    )


def pybind11_headers() -> list[str]:
    """The folder of pybind11's own, or torch's copy of them."""
    try:
        import pybind11
    except ImportError:
        return [] if torch is None else cpp_extension.include_paths()
    return [pybind11.get_include()]


def extensions() -> list[Extension]:
    found = []
    if (
        torch is not None
    ):  # else see OptionalBuild: a front end asks for requirements before they are installed
        found.append(
            cpp_extension.CppExtension(
                "snnet_kernels._C",
                sources("csrc/cpu/*.cpp"),
                depends=headers("common", "cpu"),
                py_limited_api=True,
                extra_compile_args={"cxx": [*FLAGS, *CPU_FLAGS, TORCH_TARGET]},
                extra_link_args=SANITIZE or (["-s"] if sys.platform == "linux" else []),
            )
        )
        found.append(cuda_extension())
    found.append(
        Extension(
            "snnet._rank_metrics",
            sources("csrc/metrics/*.cpp"),
            depends=headers("common", "metrics"),
            include_dirs=pybind11_headers(),
            language="c++",
            extra_compile_args=["-O3", "-std=c++17", "-g0", "-fvisibility=hidden"],
            extra_link_args=["-pthread"],
        )
    )
    return [extension for extension in found if extension is not None]


class OptionalBuild(cpp_extension.BuildExtension if torch is not None else build_ext):
    """Builds what can be built: a library that fails is left out with one warning, unless its variable is 1."""

    def build_extensions(self) -> None:
        if torch is None:
            for variable, mode in (("SNNET_CPU", CPU_MODE), ("SNNET_CUDA", CUDA_MODE)):
                if mode == "1":
                    raise SystemExit(f"{variable}=1, but torch cannot be imported here")
            warn("torch cannot be imported here: the compiled kernels are left out")
        built, failed = [], []
        last = max((file.stat().st_mtime for file in Path(self.build_temp).rglob("*.o")), default=0.0)
        for extension in list(self.extensions):
            self.extensions = [extension]
            self._mark(extension)
            self._unite(extension)
            self._renew(extension, last)
            try:
                super().build_extensions()
                built.append(extension)
            except Exception as error:  # whatever a missing or failing compiler raises
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                cuda = extension.name.endswith("_C_cuda")
                if (CUDA_MODE if cuda else CPU_MODE) == "1":
                    variable = "SNNET_CUDA" if cuda else "SNNET_CPU"
                    raise SystemExit(
                        f"{variable}=1, but {extension.name} cannot be compiled: {reason}"
                    ) from error
                failed.append(f"{extension.name} ({reason})")
        self.extensions = built
        if failed:
            warn(
                f"could not be compiled: {'; '.join(failed)}. Left out; plain Python serves in their place. "
                "`pip install -v .` shows the compiler's output."
            )

    def _mark(self, extension: Extension) -> None:
        """Give the library the digest of its sources, in a header that only one of them includes."""
        folder = Path(self.build_temp, "digest", extension.name).resolve()
        text = f'#define SNNET_DIGEST "{sources_digest(extension.name.rpartition(".")[2], Path("csrc"))}"\n'
        _written(folder / "snnet_digest.h", text)
        extension.include_dirs.append(str(folder))

    def _unite(self, extension: Extension) -> None:
        """Compile CUDA sources in as many units as run at a time: most of each one's time goes into torch's headers.

        Sources share units, so names in their anonymous namespaces must differ.
        """
        alone = [source for source in extension.sources if not source.endswith(".cu")]
        units: list[list[str]] = [[] for _ in range(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))]
        for source in sorted(set(extension.sources) - set(alone), key=os.path.getsize, reverse=True):
            min(units, key=lambda unit: sum(map(os.path.getsize, unit))).append(source)
        folder = Path(self.build_temp, "units", extension.name)
        for number, unit in enumerate(filter(None, units)):
            text = "".join(f'#include "{Path(source).resolve()}"\n' for source in unit)
            alone.append(str(_written(folder / f"unit{number}.cu", text)))
        extension.depends += extension.sources
        extension.sources = alone

    def _renew(self, extension: Extension, last: float) -> None:
        """Give changed files a new time if theirs is older than ``last``, that of the last object: ninja goes by times.

        A change comes with an older time by `rsync -a`, `cp -p` or an archive.
        """
        record = Path(self.build_temp, "digest", extension.name, "files")
        before = record.read_text().splitlines() if record.exists() else None
        now = []
        for file in sorted({*extension.sources, *extension.depends}):
            now.append(f"{hashlib.sha256(Path(file).read_bytes()).hexdigest()} {file}")
            known = before is None or now[-1] in before
            if not known and os.stat(file).st_mtime <= last:
                os.utime(file)
        _written(record, "\n".join(now))


def _written(path: Path, text: str) -> Path:
    """A file of this text; ninja goes by its time."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


class WithoutMetadata(Distribution):
    """For `python setup.py build_ext --inplace` where setuptools cannot read pyproject.toml; pip brings a newer one."""

    def parse_config_files(self, *_: object, **__: object) -> None:
        pass


READS_LICENSE = int(setuptools.__version__.split(".")[0]) >= 77  # an SPDX expression, as of PEP 639
by_hand = {} if READS_LICENSE else {"distclass": WithoutMetadata, "name": "snnet", "packages": []}
setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuild}, **by_hand)
