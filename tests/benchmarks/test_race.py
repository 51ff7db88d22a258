"""The gate, the clocks and what is handed to pytest-benchmark."""

from __future__ import annotations

import contextlib

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import reference

pytest.importorskip("pytest_benchmark", reason="the benchmarks need pip install '.[bench]'")

from benchmarks.bounds import Rates, Work, product
from benchmarks.case import Case, Unavailable
from benchmarks.clock import CpuClock, CudaClock
from benchmarks.equality import Unequal, rounding_decides, same_labels, same_neighbors, same_update
from benchmarks.operation import Operation
from benchmarks.peak_memory import peak_bytes
from benchmarks.peers.labels import label_rows, predict_labels
from benchmarks.race import Effort, Race
from benchmarks.replay import ReplayTimer
from benchmarks.shapes import Shape, growth_shapes, shapes

CPU = torch.device("cpu")
SHAPE = Shape("tiny", 600, 64, 8)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(SHAPE, CPU)


def label_gate(case, batch, labels):
    same_labels(case, batch, labels, reference.mplp(case.memory, batch.index, cache=case.cache))


def labels_by(case, threshold):
    return lambda batch: sk.mplp(case.memory, batch.index, threshold, cache=case.cache)


def test_a_wrong_answer_is_an_error_and_not_a_time(case):
    operation = Operation("labels", "labels", label_gate, inputs=("cache",))
    operation.contender("right")(lambda case: labels_by(case, 0.6))
    operation.contender("wrong")(lambda case: labels_by(case, 0.55))
    operation.contender("thresholds only")(lambda case: lambda batch: case.cache[batch.index] > 0.6)
    operation.contender("missing", requires="no_such_package")(lambda case: labels_by(case, 0.6))
    race = Race(
        operation, case, list(operation.contenders), Effort(4, 0.01, memory=False), Rates(CPU, quick=True)
    )
    lanes = race.lanes
    assert len(lanes["right"].cold) == 4 and min(lanes["right"].cold) > 0
    for name in ("wrong", "thresholds only"):
        assert isinstance(lanes[name].obstacle, Unequal) and lanes[name].cold == []
        with pytest.raises(Unequal):
            race.report(name, None)
    with pytest.raises(pytest.skip.Exception, match="no_such_package is not installed"):
        race.report("missing", None)


def test_a_part_of_the_batch_is_scaled(case):
    seen = []
    operation = Operation("sizes", "sizes", lambda case, batch, answer: None)

    @operation.contender("part", samples=2)
    def part(case):
        return lambda batch: seen.append(batch.size)

    race = Race(operation, case, ["part"], Effort(3, 1.0, memory=False), Rates(CPU, quick=True))
    assert set(seen) == {2} and race.lanes["part"].extra["scaled"] == 4.0


def test_a_contender_that_takes_minutes_is_called_once(case):
    calls = []
    operation = Operation("calls", "calls", lambda case, batch, answer: None)
    operation.contender("long", once=True)(lambda case: calls.append)
    race = Race(operation, case, ["long"], Effort(9, 1.0), Rates(CPU, quick=True))
    assert len(calls) == len(race.lanes["long"].cold) == 1 and race.lanes["long"].cold[0] > 0


def test_a_contender_that_fails_while_it_is_timed_leaves_the_others(case):
    operation = Operation("failing", "failing", lambda case, batch, answer: None)
    operation.contender("steady")(lambda case: lambda batch: None)

    @operation.contender("runs out of memory")
    def failing(case):
        left = [5]

        def run(batch):
            left[0] -= 1
            if left[0] == 0:
                raise torch.OutOfMemoryError("no room")

        return run

    race = Race(
        operation, case, list(operation.contenders), Effort(6, 1, memory=False), Rates(CPU, quick=True)
    )
    assert len(race.lanes["steady"].cold) == 6
    with pytest.raises(pytest.skip.Exception, match="out of memory: no room"):
        race.report("runs out of memory", None)


def test_an_in_place_contender_leaves_the_case_as_it_was(case):
    case.prepare("cache", "label_memory", "similarity")
    memory, cache = case.memory.clone(), case.cache.clone()
    labels = case.label_memory.row_bits.clone()
    columns = case.label_memory.column_bits.clone()

    def gate(case, batch, answer):
        same_update(case, batch, case.memory, case.cache)

    operation = Operation("update", "update", gate, inputs=("cache", "similarity"), writes=True)

    @operation.contender("snnet")
    def ours(case):
        def run(batch):
            sk.update_memory_(
                case.memory, batch.index, batch.features, 0.3, cache=case.cache, similarity=batch.similarity
            )
            case.label_memory.write_(batch.index, sk.mplp(case.memory, batch.index, 0.7, cache=case.cache))

        return run

    @operation.contender("forgets the columns")
    def forgetful(case):
        def run(batch):
            sk.update_memory_(case.memory, batch.index, batch.features, 0.3)
            case.cache[batch.index] = case.memory[batch.index] @ case.memory.t()

        return run

    race = Race(
        operation, case, list(operation.contenders), Effort(3, 0.01, memory=False), Rates(CPU, quick=True)
    )
    assert race.lanes["snnet"].obstacle is None
    assert "columns of the cache" in str(race.lanes["forgets the columns"].obstacle)
    assert torch.equal(case.memory, memory) and torch.equal(case.cache, cache)
    assert torch.equal(case.label_memory.row_bits, labels)
    assert torch.equal(case.label_memory.column_bits, columns)


def test_gates_know_rounding_from_an_error(case):
    batch = case.batches[0]
    case.prepare("cache")
    image = int(batch.index[0])
    assert not rounding_decides(case.memory, image)
    # Of two equal images the order is not known.
    twins = case.memory.clone()
    twins[(image + 1) % SHAPE.n] = twins[image]
    assert rounding_decides(twins, image)
    found = reference.nearest_neighbors(case.memory, batch.index, 3)
    same_neighbors(case, batch, found, 3)
    other = found[0].clone()
    other[0, 2] = other[0, 0]
    with pytest.raises(Unequal, match="twice"):
        same_neighbors(case, batch, (other, found[1]), 3)


def test_the_inputs_are_made_to_defeat_thresholding(case):
    case.prepare("cache", "label_memory")  # asserts the share of rejected candidates
    above = (case.cache > 0.6).sum(1).float().mean()
    positives = case.label_memory.to_dense().sum(1).float().mean()
    assert 4 < above < 25 and positives < 0.8 * above


def test_dense_peer_equals_the_reference(case):
    index = case.batches[0].index
    for cache in (case.cache, None):
        labels = predict_labels(case.memory, index, label_rows(case.memory, index, cache), cache)
        expected = sk.unpack_labels(reference.mplp(case.memory, index, cache=cache), SHAPE.n)
        assert torch.equal(labels, expected)


def test_peak_memory_of_a_call():
    if peak_bytes(lambda: None, CPU) is None:
        pytest.skip("this system does not tell its peak memory")
    assert peak_bytes(lambda: torch.ones(5_000_000), CPU) == pytest.approx(20e6, rel=0.1)
    assert peak_bytes(lambda: None, CPU) < 2e6


def test_floor_is_the_slower_of_moving_and_multiplying():
    rates = Rates(CPU, quick=True)
    rates._found = {"copy": 1e9, "ieee": 1e12, "tf32": 8e12}
    assert rates.floor(Work(bytes=2e9)) == 2.0
    assert rates.floor(product(100, 1e6, 1e3)) == pytest.approx(4.0)  # 4 GB against 0.2 s of products
    assert rates.floor(product(1e5, 1e6, 1e3)) == pytest.approx(200.0)
    assert rates.floor(product(1e5, 1e6, 1e3), "tf32x3") == pytest.approx(75.0)


def test_replayed_times_are_those_that_were_measured(benchmark_like):
    timer, fixture = ReplayTimer(), benchmark_like
    timer.play(fixture, [0.25, 0.5, 0.125])
    assert fixture.durations(timer) == [0.25, 0.5, 0.125]


@pytest.fixture
def benchmark_like():
    class Fixture:
        """Times a function as pytest-benchmark's pedantic mode does."""

        def pedantic(self, target, setup, rounds):
            self.target, self.setup, self.rounds = target, setup, rounds

        def durations(self, timer):
            found = []
            for _ in range(self.rounds):
                self.setup()
                start = timer()
                self.target()
                found.append(timer() - start)
            return found

    return Fixture()


def test_shapes_of_both_devices():
    assert [(s.batch, s.n, s.d) for s in shapes("cpu")] == [(64, 12_936, 2048), (64, 12_936, 512)]
    asked = {(s.batch, s.n, s.d) for s in shapes("cuda")}
    assert {(128, 12_936, 2048), (64, 12_936, 512), (128, 32_621, 2048), (1024, 1_000_000, 512)} <= asked
    assert [s.n for s in growth_shapes("cpu")] == [6_468, 12_936, 32_621, 100_000]
    with pytest.raises(ValueError, match="got 'huge'"):
        shapes("cpu", ["huge"])
    with pytest.raises(ValueError, match="--device cuda"):
        shapes("cpu", ["million"])


def test_forced_backend_that_does_not_serve_is_unavailable(case):
    operation = Operation("labels", "labels", label_gate, inputs=("cache",))
    operation.ours()(lambda case: labels_by(case, 0.6))
    assert list(operation.names("cpu")) == ["snnet"]
    assert list(operation.names("cuda")) == ["snnet", "snnet-cuda", "snnet-triton"]
    race = Race(operation, case, ["snnet-triton"], Effort(2, 0.01, memory=False), Rates(CPU, quick=True))
    assert isinstance(race.lanes["snnet-triton"].obstacle, Unavailable)


def test_cpu_clock_measures_the_call(monkeypatch):
    now = [5.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    clock = CpuClock()
    monkeypatch.setattr("benchmarks.clock.time.perf_counter", lambda: now[0])
    clock._sweep = type("Sweep", (), {"sum": lambda self: takes(7.0)})()
    assert clock.warm(lambda: takes(0.25)) == 0.25
    assert clock.cold(lambda: takes(0.25)) == 0.25 and now == [12.5]  # the sweep before it is not counted


class FakeCuda:
    """Stands in for torch.cuda: writes down what is asked of the device, in order."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        log = self.log

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                log.append("event")

            def synchronize(self) -> None:
                log.append("wait")

            def elapsed_time(self, end: Event) -> float:
                return 1.5  # milliseconds

        properties = type("Properties", (), {"L2_cache_size": 4096})()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("busy"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("wait"))


def test_cuda_clock_times_between_events_and_waits(monkeypatch):
    log: list[str] = []
    FakeCuda(log).install(monkeypatch)
    clock = CudaClock(CPU)
    swept = []
    real_sum = torch.sum
    monkeypatch.setattr(torch, "sum", lambda *a, **k: (swept.append(len(log)), real_sum(*a, **k))[1])
    assert clock.warm(lambda: log.append("call")) == pytest.approx(1.5e-3)
    assert log == ["busy", "event", "call", "event", "wait"] and swept == []
    log.clear()
    assert clock.cold(lambda: log.append("call")) == pytest.approx(1.5e-3)
    assert log == ["busy", "event", "call", "event", "wait"] and swept == [0]
    log.clear()
    clock.host(lambda: log.append("call"))
    assert log == ["wait", "call", "wait"] and swept == [0, 0]


def test_captured_iteration_replays_on_the_batch_it_is_given(case, monkeypatch):
    """With a graph that replays by running again, its answers are those of an eager head."""
    from benchmarks import heads
    from benchmarks.peers import captured

    class Graph:
        def __init__(self) -> None:
            graphs.append(self)

        def replay(self) -> None:
            loss = steps[0]._iterate()
            steps[0].loss.copy_(loss)

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    graphs: list[Graph] = []
    steps: list[captured.CapturedIteration] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())

    case.prepare("cache", "label_memory")
    eager, head = (heads.head_of(case, cache=True) for _ in range(2))
    steps.append(captured.CapturedIteration(head, case.batches[0]))
    heads.fill(head, case)
    assert len(graphs) == 1
    for batch in case.batches[1:4]:
        features = batch.features.clone().requires_grad_()
        expected = eager(features, batch.index)
        expected.backward()
        eager.update_(batch.index, features.detach())
        loss, gradient = steps[0](batch)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.equal(gradient, features.grad)
    assert torch.equal(head.memory.features, eager.memory.features)
    assert torch.equal(head.pseudo_labels.row_bits, eager.pseudo_labels.row_bits)
