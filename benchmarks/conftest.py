"""Options of the benchmarks, and which operation runs on which shape with which contenders.

What loads torch is imported in functions: the threads are pinned before.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest

from .floors import read_floors
from .machine import describe, pin_threads
from .results import slim


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("pytest-benchmark is not here: the benchmarks need pip install '.[bench]'")
    add = parser.getgroup("sizes and device of the benchmarks").addoption
    sizes = "comma-separated: tiny, market, duke, msmt17, large, million"
    default = (
        "default: market; on cuda market, msmt17 and million; on a cpu million is growth only, half an hour"
    )
    add("--size", help=f"{sizes} ({default})")
    add("--dim", help="comma-separated feature dimensions (default: 2048 and 512)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where (default: cpu)")
    add("--threads", type=int, help="threads of every contender (default: one a core)")
    add("--rounds", type=int, default=20, help="rounds of a contender, at most (default: 20)")
    add("--seconds", type=float, default=0.6, help="measured time of a contender (default: 0.6)")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    only = "only what floors.yaml has a ratio of, on cuda without torch.compile"
    add("--floors-only", action="store_true", help=only)


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, it writes what it has
    config.addinivalue_line("filterwarnings", "ignore:Dynamo does not know how to trace")
    option = config.option
    if not hasattr(option, "floors_only"):
        raise pytest.UsageError("name the folder of the benchmarks: pytest benchmarks --benchmark-only")
    pin_threads(option.threads)
    if not any(str(word).startswith("--benchmark-columns") for word in config.invocation_params.args):
        option.benchmark_columns = ["median", "iqr", "rounds"]

    import torch

    if option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device")
    _refuse_plain(option.device)


def _refuse_plain(device: str) -> None:
    """Refuse to measure where plain PyTorch would race against itself; a forced backend is a choice."""
    import torch

    from snnet_kernels import backend_info
    from snnet_kernels.backends.loaded import without_code

    info = backend_info()
    library = info.libraries[0 if device == "cpu" else 1]
    if info.forced is None and not library.loaded:
        raise pytest.UsageError(
            f"the compiled library {library.name} is {library.detail}: "
            "without it plain PyTorch races against itself (SNNET_BACKEND=reference runs all the same)"
        )
    if info.forced is None and device == "cuda" and "cuda" in without_code(torch.cuda.current_device()):
        raise pytest.UsageError(
            f"the compiled library {library.name} has no code for this device ({library.detail}): "
            "plain PyTorch races against itself (SNNET_BACKEND=reference runs all the same)"
        )


def selected(option: Any) -> list[tuple[Any, Any, str]]:
    """(operation, shape, contender) that the options ask for, one shape after the other: its inputs are made once."""
    from .operations import OPERATIONS

    sizes = option.size.split(",") if option.size else []
    dims = [int(d) for d in option.dim.split(",")] if option.dim else []
    found = [
        (operation, shape, name)
        for operation in OPERATIONS.values()
        for shape, name in operation.entries(option.device, sizes, dims)
    ]
    if option.floors_only:
        keep = {entry for floor in read_floors(option.device) for entry in floor.entries}
        found = [entry for entry in found if (entry[0].name, entry[1].name, entry[2]) in keep]
    order = [shape for _, shape, _ in found]
    return sorted(found, key=lambda entry: order.index(entry[1]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contender" not in metafunc.fixturenames:
        return
    import torch

    from .clock import clock_of

    option = metafunc.config.option
    try:
        found = selected(option)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    timer = pytest.mark.benchmark(timer=lambda: clock_of(torch.device(option.device))())
    entries = [
        pytest.param(operation, shape, name, id=f"{operation.name}-{shape.name}-{name}", marks=timer)
        for operation, shape, name in found
    ]
    metafunc.parametrize(("operation", "shape", "contender"), entries)


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Any:
    import torch

    from .runner import Runner

    option = request.config.option
    device = torch.device(option.device)
    return Runner(device, option.rounds, option.seconds, memory=not option.no_memory)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return describe(config.option.device)  # and not the host's name


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    slim(output_json)
