"""Fixtures of the kernel tests."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.kernels.cuda_on_cpu import Emulation, emulation, mutants
from tests.kernels.gpu_checks import poison
from tests.kernels.inputs import needs_cpu_library
from tests.paths import DATA

GOLDEN_CASES = range(6)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """``torch.empty`` gives NaN and the largest integers: an element that is never written fails its test.

    On a GPU deterministic algorithms would make cuBLAS ask for a workspace setting.
    """
    if request.node.get_closest_marker("gpu"):
        poison()
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=GOLDEN_CASES, ids=lambda case: f"c{case}")
def golden(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """One case of numbers made by running the MMCL authors' own code."""
    prefix = f"c{request.param}_"
    with np.load(DATA / "mmcl_reference.npz") as arrays:
        return {
            key[len(prefix) :]: torch.from_numpy(arrays[key])
            for key in arrays.files
            if key.startswith(prefix)
        }


@pytest.fixture(scope="session")
def cuda_on_cpu() -> Emulation:
    """The CUDA sources on CPU tensors."""
    return emulation()


@pytest.fixture(scope="session")
def small_constants() -> Emulation:
    """The kernels of labels and neighbours with constants so small that small inputs take every path."""
    return mutants.small_constants()


class CpuLibrary:
    """The compiled CPU library, to be called as an emulation is."""

    operations = torch.ops.snnet

    def seed(self, seed: int, blocks_at_once: int = 1) -> None:
        pass


@pytest.fixture(scope="session")
def cpu_library() -> CpuLibrary:
    return CpuLibrary()


@pytest.fixture(scope="session", params=[pytest.param("cpu_library", marks=needs_cpu_library), "cuda_on_cpu"])
def kernels(request: pytest.FixtureRequest) -> CpuLibrary | Emulation:
    """The compiled kernels of both kinds of device, behind the same contracts."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def switched_barriers() -> Emulation:
    return mutants.switched_barriers()


@pytest.fixture
def without_barrier(switched_barriers) -> Iterator[Callable[[str], Emulation]]:
    """The kernels without the barrier of this name."""

    def leave_out(name: str) -> Emulation:
        switched_barriers.leave_out(list(mutants.BARRIERS).index(name))
        return switched_barriers

    yield leave_out
    switched_barriers.leave_out(-1)


@pytest.fixture
def use_tile(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes Triton's products of a precision in its tile of this number alone."""
    from snnet_kernels.triton.common import launching

    def use(precision: str, number: int) -> None:
        monkeypatch.setitem(launching.TILES, precision, (launching.TILES[precision][number],))

    return use


@pytest.fixture
def one_process_group(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
