"""Options of the benchmarks, and which operation runs on which shape with which contenders."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from .floors import read_floors
from .machine import default_threads, describe, pin_threads
from .results import slim

if TYPE_CHECKING:  # they load torch, which is to happen after the threads are pinned
    from .operation import Operation
    from .runner import Runner
    from .shapes import Shape

OPTIONS: dict[str, dict[str, Any]] = {
    "--size": {
        "help": "comma-separated: tiny, market, duke, msmt17, large, million (default: market; "
        "on cuda market, msmt17 and million; on a cpu million is growth only, half an hour)"
    },
    "--dim": {"help": "comma-separated feature dimensions (default: 2048 and 512)"},
    "--device": {"default": "cpu", "choices": ("cpu", "cuda"), "help": "where (default: cpu)"},
    "--threads": {"type": int, "help": "threads of every contender (default: one a core)"},
    "--rounds": {"type": int, "default": 20, "help": "rounds of a contender, at most (default: 20)"},
    "--seconds": {"type": float, "default": 0.6, "help": "measured time of a contender (default: 0.6)"},
    "--no-memory": {"action": "store_true", "help": "do not measure peak memory"},
    "--time-limit": {
        "type": float,
        "default": float("inf"),
        "metavar": "SECONDS",
        "help": "begin nothing after it; what floors.yaml has a ratio of comes first (default: none)",
    },
    "--allow-plain": {
        "action": "store_true",
        "help": "run without the compiled library too, where plain PyTorch serves in its place",
    },
    "--floors-only": {
        "action": "store_true",
        "help": "only what floors.yaml has a ratio of, on cuda without torch.compile",
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sizes and device of the benchmarks")
    for name, settings in OPTIONS.items():
        group.addoption(name, **settings)


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, it writes what it has
    config.addinivalue_line("filterwarnings", "ignore:Dynamo does not know how to trace")
    option = config.option
    if not hasattr(option, "floors_only"):
        raise pytest.UsageError("name the folder of the benchmarks: pytest benchmarks --benchmark-only")
    pin_threads(option.threads or default_threads())
    if not any(str(word).startswith("--benchmark-columns") for word in config.invocation_params.args):
        option.benchmark_columns = ["median", "iqr", "rounds"]

    import torch

    if option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device")
    if not option.allow_plain:
        _refuse_plain(option.device)


def _refuse_plain(device: str) -> None:
    """Refuse to measure where plain PyTorch would race against itself; a forced backend is a choice."""
    from snnet_kernels import backend_info

    info = backend_info()
    library = info.libraries[0 if device == "cpu" else 1]
    if info.forced is None and not library.loaded:
        raise pytest.UsageError(
            f"the compiled library {library.name} is {library.detail}: "
            "without it plain PyTorch races against itself (--allow-plain runs all the same)"
        )


def selected(option: Any) -> list[tuple[Operation, Shape, str]]:
    """What the options ask for, one shape after the other, so that its inputs are made once.

    If time is short, the stated ratios come first.
    """
    from .operations import OPERATIONS

    sizes = option.size.split(",") if option.size else []
    dims = [int(d) for d in option.dim.split(",")] if option.dim else []
    found = [
        (operation, shape, name)
        for operation in OPERATIONS.values()
        for shape, name in operation.entries(option.device, sizes, dims)
    ]
    floors = [floor for floor in read_floors() if floor.device == option.device]
    if option.floors_only:
        keep = {
            (f.operation, shape, name) for f in floors for shape in f.shapes for name in f.quick_contenders
        }
        found = [entry for entry in found if (entry[0].name, entry[1].name, entry[2]) in keep]
    order = {shape: place for place, shape in enumerate(dict.fromkeys(shape for _, shape, _ in found))}
    stated = {(floor.operation, shape) for floor in floors for shape in floor.shapes}
    short = option.time_limit < float("inf")
    return sorted(found, key=lambda e: (short and (e[0].name, e[1].name) not in stated, order[e[1]]))


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


_RUNNER = pytest.StashKey["Runner"]()


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Runner:
    import torch

    from .runner import Runner

    option = request.config.option
    request.config.stash[_RUNNER] = made = Runner(
        torch.device(option.device),
        option.rounds,
        option.seconds,
        not option.no_memory,
        quick=option.size == "tiny",
        time_limit=option.time_limit,
    )
    return made


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return describe(config.option.device)  # and not the host's name


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    runner = config.stash.get(_RUNNER, None)
    slim(output_json, dict(runner.rates) if runner else {})
