"""The Triton kernels compiled without a GPU, for any architecture, just as the host's side launches them.

While :func:`compiling` is active the operations of ``snnet_kernels.triton`` go on CPU tensors through their real
launches, so that types, specialised arguments, meta-parameters and options are those of a real call; there Triton
compiles and assembles each kernel and does not run it. The result of an operation is undefined then.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pathlib
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import snnet_kernels.triton
from snnet_kernels.triton import similarity
from snnet_kernels.triton.common import launching
from snnet_kernels.triton.common.launching import OLD_TRITON, TILES
from tests.paths import ROOT

# What Triton compiles, by its hash of source, options, target and version, and what ptxas said of it: for all
# processes of a session, and the next one. `make clean` empties it.
KEPT = ROOT / "build" / "triton_ahead"
KIB = 1024
# Shared memory that a block can have, by compute capability. What a kernel takes on 8.6 and 8.9, which have 99 KB, it
# takes on 8.0. For 7.5, which has 64 KB, none is compiled here.
MOST_SHARED = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB}
# Bytes that a thread stores to and loads from local memory at most: with the default tile (on 12.0 the nearest
# neighbours in "bf16" have 120 of them), and with the others, where the loss with hard negatives has 1,804 on 8.0 and
# 1,712 on 9.0, all else fewer. The deeper fp32 products of Triton before 3.8 take more.
MOST_SPILLED_BY_DEFAULT, MOST_SPILLED = (256, 4096) if OLD_TRITON else (0, 2048)
MOST_SPILLED_BY_DEFAULT_ON = {120: 128}
_TENSOR_CORES = re.compile(r"\b(mma|wgmma|tcgen05\.mma)\.")
_MULTIPLY_ADD = re.compile(r"fma\.rn\.f32\s+(%\w+), (%\w+), (%\w+), (\S+);")
_SHARED_LOAD = re.compile(r"ld\.shared\S*\s+\{?([^[}]+)\}?, \[")
_FLOAT_SUM = re.compile(r"\b(add|sub|mul)\.(\S+\.)?f32\b")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    name: str
    architecture: int
    options: dict[str, Any]  # meta-parameters and options of the launch
    shared: int
    registers: int
    spilled: int  # bytes stored and loaded
    ptx: str

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return (
            f"{self.name} for sm_{self.architecture} ({options}): {self.shared} bytes shared, "
            f"{self.registers} registers, {self.spilled} bytes spilled"
        )


class _Device:
    """Stands in for Triton's driver: a device of this architecture that nothing is launched on."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> str:
        return f"sm_{self.architecture}"  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: str) -> int:
        return 0


_compiled: dict[str, Compiled] = {}  # by Triton's hash of source, options and target


@contextlib.contextmanager
def compiling(architecture: int, precision: str, tile: int) -> Iterator[list[Compiled]]:
    """The kernels launched meanwhile, each once; products of ``precision`` are made in its tile number ``tile``."""
    run, found = JITFunction.run, {}

    @functools.wraps(run)
    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        meta = dict(options)
        kernel, log = _reported(lambda: run(self, *arguments, grid=grid, warmup=True, **options))
        if not log:  # a session ended before it kept the report
            shutil.rmtree(_folder(kernel))
            self.device_caches.clear()
            kernel, log = _reported(lambda: run(self, *arguments, grid=grid, warmup=True, **options))
        if kernel.hash not in _compiled:
            _compiled[kernel.hash] = _of(kernel, self.__name__, architecture, meta, log)
        found[kernel.hash] = _compiled[kernel.hash]

    compiled: list[Compiled] = []
    with (
        knobs.cache.scope(),
        knobs.nvidia.scope(),
        knobs.compilation.scope(),
        mock.patch.dict(
            os.environ, MLIR_DISABLE_MULTITHREADING="1"
        ),  # threads take longer to start than to work
        mock.patch.object(driver, "_active", _Device(architecture)),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.dict(launching.TILES, {precision: (TILES[precision][tile],)}),
        mock.patch.object(similarity, "TILES", similarity.TILES[tile : tile + 1]),
    ):
        knobs.cache.dir = str(KEPT)
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.disable_line_info = True  # takes time, and changes no instruction
        yield compiled
    compiled.extend(found.values())


def _reported(compiled: Callable[[], Any]) -> tuple[Any, str]:
    """A kernel and ptxas's report of it, which is made with it and kept beside it; empty where there is none."""
    with contextlib.redirect_stdout(io.StringIO()) as log:
        kernel = compiled()
    kept = _folder(kernel) / "ptxas.log"
    if log.getvalue():
        kept.with_suffix(f".{os.getpid()}").write_text(log.getvalue())
        kept.with_suffix(f".{os.getpid()}").replace(kept)
    return kernel, kept.read_text() if kept.exists() else ""


def _folder(kernel: Any) -> pathlib.Path:
    return pathlib.Path(next(iter(kernel.metadata_group.values()))).parent


def _of(kernel: Any, name: str, architecture: int, options: dict[str, Any], log: str) -> Compiled:
    report = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*Used (\d+) registers", log)
    assert report is not None, f"no report of ptxas for {name}: {log!r}"
    stores, loads, registers = map(int, report.groups())
    return Compiled(
        name, architecture, options, kernel.metadata.shared, registers, stores + loads, kernel.asm["ptx"]
    )


def check(kernel: Compiled, is_default: bool) -> None:
    """Shared memory, spilled registers and the arithmetic of products are as they should be."""
    # What is compiled with a default tile fits where there is the least of it, from 8.0 on.
    assert kernel.shared <= (min(MOST_SHARED.values()) if is_default else MOST_SHARED[kernel.architecture]), (
        kernel
    )
    by_default = MOST_SPILLED_BY_DEFAULT_ON.get(kernel.architecture, MOST_SPILLED_BY_DEFAULT)
    assert kernel.spilled <= (by_default if is_default else MOST_SPILLED), kernel
    # Said at the launch: Triton's default is going to change.
    assert kernel.options["enable_fp_fusion"], kernel
    precision = kernel.options.get("PRECISION", "tf32x3" if kernel.name == "similarity_kernel" else "ieee")
    multiplies = "BLOCK_K" in kernel.options and not kernel.options.get("GIVEN", False)
    assert bool(_TENSOR_CORES.search(kernel.ptx)) == (multiplies and precision != "ieee"), kernel
    expected = expected_chains(kernel.options) if multiplies else set()
    if expected:
        assert {chains_of_loop(loop, str(kernel)) for loop in multiply_loops(kernel.ptx)} == expected, kernel


def expected_chains(options: dict[str, Any]) -> set[tuple[int, int]]:
    """(entries of a thread, multiply-adds of each) in the loops of "ieee" products, of tiles and of single pairs."""
    threads = 32 * options.get("num_warps", 4)
    depth, precision = options["BLOCK_K"], options.get("PRECISION")
    if "BLOCK" in options:
        return {(max(1, options["BLOCK"] // threads), depth)}
    chains = set()
    if precision == "ieee":
        chains.add((options["BLOCK_A"] * options["BLOCK_B"] // threads, depth))
    if "PAIR_K" in options and precision in ("ieee", "bf16"):
        chains.add((max(1, options["BLOCK_A"] // threads), options["PAIR_K"]))
    return chains


def multiply_loops(ptx: str) -> list[list[str]]:
    """The instructions of each innermost loop without branches in it that has float multiply-adds."""
    blocks = re.split(r"^(\$L__BB\w+):", ptx, flags=re.MULTILINE)[1:]
    loops = []
    for label, text in zip(blocks[::2], blocks[1::2], strict=True):
        back = re.search(rf"\bbra\S*\s+{re.escape(label)};", text)
        if back and "fma.rn.f32" in text[: back.start()]:
            loops.append(text[: back.start()].splitlines())
    return loops


def chains_of_loop(instructions: list[str], kernel: str) -> tuple[int, int]:
    """(number, length) of the chains of multiply-adds, all alike, that one turn of a loop adds to its sums.

    In a chain each result is what the next adds to; what one vector of shared memory holds comes in rising order.
    """
    lengths: dict[str, int] = {}  # by the register that holds the last result of a chain
    vectors: dict[str, dict[tuple[int, int], int]] = {}  # the last lane met, by operand and load
    lane_of: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(instructions):
        assert not _FLOAT_SUM.search(line), f"{line} among the products of {kernel}"
        if load := _SHARED_LOAD.search(line):
            lane_of |= {name.strip(): (number, lane) for lane, name in enumerate(load[1].split(","))}
        if multiply := _MULTIPLY_ADD.search(line):
            result, *factors, before = multiply.groups()
            lengths[result] = lengths.pop(before, 0) + 1
            met = vectors.pop(before, {})
            for operand, name in enumerate(factors):
                load_number, lane = lane_of.get(name, (number, 0))
                assert met.get((operand, load_number), -1) < lane, f"k does not rise in {kernel}: {line}"
                met[operand, load_number] = lane
            vectors[result] = met
    (length,) = set(lengths.values())
    return len(lengths), length


def require_compiler() -> None:
    """Skip the test where kernels cannot be compiled."""
    if launching.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set: kernels are not compiled")
    for tool in (knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell):
        if not os.access(tool.path, os.X_OK):
            pytest.skip(f"no ptxas of Triton's: {tool.path}")


def launched_names(call: Callable[[], object]) -> set[str]:
    """The names of the kernels that a call launches."""
    names = set()

    def record(self: Any, *arguments: Any, **options: Any) -> None:
        names.add(self.__name__)

    with mock.patch.object(JITFunction, "run", record):
        call()
    return names


def kernel_names() -> set[str]:
    """All kernels of the package: the Triton functions whose name ends in ``_kernel``."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(snnet_kernels.triton.__path__, "snnet_kernels.triton.")
    ]
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_kernel") and isinstance(value, JITFunction)
    }
