"""Options of the benchmarks, and which operation runs on which shape with which contenders."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .floors import read_floors
from .machine import default_threads, describe, pin_threads
from .shapes import Shape, shapes

if TYPE_CHECKING:  # they load torch, which is to happen after the threads are pinned
    from .operation import Measured
    from .race import Race
    from .workbench import Workbench


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sizes and device of the benchmarks")
    group.addoption(
        "--size",
        help="comma-separated: tiny, market, duke, msmt17, large, million (default: market; "
        "on cuda market, msmt17 and million)",
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    measured = getattr(metafunc.function, "measured", None)
    if measured is None:
        return
    operation, own_shapes = measured.operation, measured.shapes
    option = metafunc.config.option
    sizes = _words(option.size)
    everything = bool({*sizes} - {"tiny"})
    try:
        if own_shapes is not None:
            asked = own_shapes(option.device, sizes)
        else:
            asked = shapes(option.device, sizes, [int(d) for d in _words(option.dim)])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if own_shapes is None and not operation.uses_features:  # the first d of each size is enough
        asked = list({shape.size: shape for shape in reversed(asked)}.values())
    chosen = [
        pytest.param(shape, name, id=f"{shape.name}-{name}")
        for shape in asked
        for name in operation.names(option.device)
        if everything or name not in measured.leave_out
    ]
    metafunc.parametrize(("shape", "contender"), chosen)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One shape after the other, so that its inputs are made once; if time is short, the stated ratios first."""
    floors = [floor for floor in read_floors() if floor.device == config.option.device]
    if config.option.floors_only:
        keep = {
            (floor.operation, shape, name)
            for floor in floors
            for shape in floor.limits
            for name in floor.quick_contenders
        }
        dropped = [item for item in items if not _is_in(item, keep)]
        items[:] = [item for item in items if _is_in(item, keep)]
        config.hook.pytest_deselected(items=dropped)
    stated = {(floor.operation, shape) for floor in floors for shape in floor.limits}
    short = config.option.time_limit < float("inf")
    order: dict[Any, int] = {}
    for item in items:
        order.setdefault(_shape_of(item), len(order))

    def rank(item: pytest.Item) -> tuple[bool, int]:
        measured, shape = _measured_by(item), _shape_of(item)
        stated_here = isinstance(shape, Shape) and (measured.operation.name, shape.name) in stated
        return short and not stated_here, order[shape]

    items.sort(key=rank)


def _is_in(item: pytest.Item, keep: set[tuple[str, str, str]]) -> bool:
    measured, shape = _measured_by(item), _shape_of(item)
    # A test without a shape on this device has a mark of pytest's own in its place.
    if measured is None or not isinstance(shape, Shape):
        return False
    return (measured.operation.name, shape.name, item.callspec.params["contender"]) in keep


def _measured_by(item: pytest.Item) -> Measured | None:
    return getattr(getattr(item, "function", None), "measured", None)


def _shape_of(item: pytest.Item) -> Shape | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("shape") if callspec else None


_WORKBENCH = pytest.StashKey["Workbench"]()


@pytest.fixture(scope="session")
def workbench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    from .race import Effort
    from .workbench import Workbench

    option = request.config.option
    request.config.stash[_WORKBENCH] = workbench = Workbench(
        option.device,
        Effort(option.rounds, option.seconds, memory=not option.no_memory),
        quick=option.size == "tiny",
        time_limit=option.time_limit,
    )
    yield workbench


@pytest.fixture
def race(request: pytest.FixtureRequest, workbench: Workbench, shape: Shape) -> Race:
    """The race of this test's operation and shape, of all contenders that were selected."""
    from .case import Unavailable

    operation = _measured_by(request.node).operation
    names = [
        item.callspec.params["contender"]
        for item in request.session.items
        if _shape_of(item) == shape and _measured_by(item).operation is operation
    ]
    try:
        return workbench.race(operation, shape, names)
    except Unavailable as reason:
        pytest.skip(str(reason))


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return describe(config.option.device)  # and not the host's name


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    from .results import slim

    workbench = config.stash.get(_WORKBENCH, None)
    slim(output_json, workbench.rates.found() if workbench else {})
