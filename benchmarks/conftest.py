"""Options of the benchmarks, and which operation runs on which shape with which contenders."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from .floors import read_floors
from .machine import default_threads, describe, pin_threads

if TYPE_CHECKING:  # they load torch, which is to happen after the threads are pinned
    from .operation import Operation
    from .runner import Runner
    from .shapes import Shape


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sizes and device of the benchmarks")
    group.addoption(
        "--size",
        help="comma-separated: tiny, market, duke, msmt17, large, million (default: market; "
        "on cuda market, msmt17 and million; on a cpu million is growth only, half an hour)",
    )
    group.addoption("--dim", help="comma-separated feature dimensions (default: 2048 and 512)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where (default: cpu)")
    group.addoption("--threads", type=int, help="threads of every contender (default: one a core)")
    group.addoption("--rounds", type=int, default=20, help="rounds of a contender, at most (default: 20)")
    group.addoption("--seconds", type=float, default=0.6, help="measured time of a contender (default: 0.6)")
    group.addoption("--no-memory", action="store_true", help="do not measure peak memory")
    group.addoption(
        "--time-limit",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="begin nothing after it; what floors.yaml has a ratio of comes first (default: none)",
    )
    group.addoption(
        "--allow-plain",
        action="store_true",
        help="run without the compiled library too, where plain PyTorch serves in its place",
    )
    group.addoption(
        "--floors-only",
        action="store_true",
        help="only what floors.yaml has a ratio of, without torch.compile",
    )


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, it writes what it has
    config.addinivalue_line("filterwarnings", "ignore:Dynamo does not know how to trace")
    if not hasattr(config.option, "floors_only"):
        raise pytest.UsageError("name the folder of the benchmarks: pytest benchmarks --benchmark-only")
    threads = config.option.threads or default_threads()
    pin_threads(threads)
    if not any(str(word).startswith("--benchmark-columns") for word in config.invocation_params.args):
        config.option.benchmark_columns = ["median", "iqr", "rounds"]

    import torch

    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device")
    if not config.option.allow_plain:
        _refuse_plain(config.option.device)


def _refuse_plain(device: str) -> None:
    """Refuse to measure where plain PyTorch would race against itself; a forced backend is a choice."""
    from snnet_kernels import backend_info

    info = backend_info()
    library = {"cpu": info.libraries[0], "cuda": info.libraries[1]}[device]
    if info.forced is None and not library.loaded:
        raise pytest.UsageError(
            f"the compiled library {library.name} is {library.detail}: "
            "without it plain PyTorch races against itself (--allow-plain runs all the same)"
        )


def _words(text: str | None) -> list[str]:
    return text.split(",") if text else []


def selected(option: Any) -> list[tuple[Operation, Shape, str]]:
    """What the options ask for, one shape after the other, so that its inputs are made once.

    If time is short, the stated ratios come first.
    """
    from .operations import OPERATIONS

    sizes, dims = _words(option.size), [int(d) for d in _words(option.dim)]
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

    def rank(entry: tuple[Operation, Shape, str]) -> tuple[bool, int]:
        return short and (entry[0].name, entry[1].name) not in stated, order[entry[1]]

    return sorted(found, key=rank)


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
        memory=not option.no_memory,
        quick=option.size == "tiny",
        time_limit=option.time_limit,
    )
    return made


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return describe(config.option.device)  # and not the host's name


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    from .results import slim

    runner = config.stash.get(_RUNNER, None)
    slim(output_json, runner.rates.found() if runner else {})
