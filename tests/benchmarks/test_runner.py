"""The gate, the clocks and what is handed to pytest-benchmark."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from importlib import import_module
from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import reference

pytest.importorskip("pytest_benchmark", reason="the benchmarks need pip install '.[bench]'")

from benchmarks.case import Case
from benchmarks.clock import CpuClock, CudaClock
from benchmarks.equality import (
    ROUNDING,
    as_bool,
    rounding_decides,
    same_labels,
    same_lists,
    same_neighbors,
    same_update,
)
from benchmarks.forms import FORMS
from benchmarks.operation import Operation
from benchmarks.operations import iteration, jaccard_graph, label_memory
from benchmarks.operations.iteration import BareProduct, same_step
from benchmarks.ours import CapturedIteration, Head, Ours
from benchmarks.peak_memory import Watch
from benchmarks.pytorch import (
    PRODUCTS,
    fastest,
    fastest_product,
    predict_labels_from_matrix,
    ranks_in_parts,
    ranks_of,
)
from benchmarks.runner import Runner
from benchmarks.shapes import Shape, growth_shapes, shapes
from tests.paths import ROOT

CPU = torch.device("cpu")
SHAPE = Shape("tiny", 600, 64, 8)


class Benchmark:
    """Stands in for the fixture of pytest-benchmark: calls as its pedantic mode does, and keeps the seconds."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}
        self.seconds: list[float] = []

    def pedantic(self, target, args=(), setup=None, teardown=None, rounds=1):
        for _ in range(rounds):
            if setup:
                args, _ = setup()
            start = time.perf_counter()
            answer = target(*args)
            self.seconds.append(time.perf_counter() - start)
            if teardown:
                teardown(*args)
        return answer


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(SHAPE, CPU)


@pytest.fixture(autouse=True)
def however_busy_the_machine(monkeypatch):
    """Every contender is quick enough for all of its rounds, and for warm calls."""
    monkeypatch.setattr("benchmarks.runner.WARM_BELOW", float("inf"))
    monkeypatch.setattr("benchmarks.runner.ONCE_ABOVE", float("inf"))


def measured(operation: Operation, case: Case, name: str, rounds: int = 4) -> Benchmark:
    """What the runner hands to pytest-benchmark for the contender ``name``."""
    runner = Runner(CPU, rounds, 1e9, memory=False, case=case)
    benchmark = Benchmark()
    runner.report(operation, case.shape, name, benchmark)
    return benchmark


def anything(case, batch, answer):
    return None


def labels_by(case, threshold):
    return lambda batch: sk.mplp(case.memory, batch.index, threshold)


def test_a_wrong_answer_is_an_error_and_not_a_time(case):
    operation = Operation("labels", "labels", same_labels)
    operation.contender("right")(lambda case: labels_by(case, 0.6))
    operation.contender("wrong")(lambda case: labels_by(case, 0.55))
    operation.contender("wrong once", once=True)(lambda case: labels_by(case, 0.55))
    operation.contender("thresholds only")(lambda case: lambda batch: case.matrix[batch.index] > 0.6)
    operation.contender("missing", lambda case: import_module("no_such_package"))
    operation.contender("broken", lambda case: import_module("snnet_kernels.no_such_module"))
    right = measured(operation, case, "right")
    assert len(right.seconds) == 4 and min(right.seconds) > 0
    assert right.extra_info["contender"] == "right" and right.extra_info["warm_seconds"] > 0
    for name, calls in {"wrong": 0, "wrong once": 1, "thresholds only": 0}.items():
        benchmark = Benchmark()
        with pytest.raises(AssertionError, match="no rounding explains the difference"):
            Runner(CPU, case=case).report(operation, SHAPE, name, benchmark)
        # Without a description the one call of "wrong once" is not a result.
        assert len(benchmark.seconds) == calls and benchmark.extra_info == {}
    with pytest.raises(pytest.skip.Exception, match="no_such_package is not installed"):
        measured(operation, case, "missing")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'snnet_kernels\.no_such_module'"):
        measured(operation, case, "broken")


def test_an_answer_after_the_timed_calls_is_compared_too(case):
    operation = Operation("labels", "labels", same_labels)

    @operation.contender("right once")
    def right_once(case):
        calls = []
        return lambda batch: calls.append(1) or (labels_by(case, 0.6)(batch) if len(calls) == 1 else None)

    @operation.contender("the first batch's")
    def of_the_first_batch(case):
        return lambda batch: labels_by(case, 0.6)(case.batches[0])

    for name in operation.contenders:
        benchmark = Benchmark()
        with pytest.raises((AssertionError, AttributeError)):
            Runner(CPU, 4, 1e9, memory=False, case=case).report(operation, SHAPE, name, benchmark)
        assert len(benchmark.seconds) == 4 and benchmark.extra_info == {}


def test_a_contender_that_takes_minutes_is_called_once(case, monkeypatch):
    calls = []
    operation = Operation("calls", "calls", anything)
    operation.contender("long", once=True)(lambda case: calls.append)
    benchmark = measured(operation, case, "long", 9)
    assert len(calls) == len(benchmark.seconds) == 1 and benchmark.seconds[0] > 0
    # It meets what was put back, and a cache without its inputs.
    order = []
    operation.contender(
        "cold", lambda case: case.on_reset(lambda: order.append("reset")) or order.append, once=True
    )
    monkeypatch.setattr(CpuClock, "sweep", lambda self: order.append("sweep"))
    measured(operation, case, "cold")
    assert order == ["reset", "sweep", case.batches[0]]


def test_what_the_one_call_takes_is_measured_with_its_time(case):
    """Processor time, and the peak if memory is asked for; of a contender that is timed often, with its last call."""
    operation = Operation("calls", "calls", anything)
    operation.contender("once", lambda case: lambda batch: torch.ones(5_000_000), once=True)
    operation.contender("often", lambda case: lambda batch: torch.ones(5_000_000))

    def described(name, memory):
        benchmark = Benchmark()
        Runner(CPU, memory=memory, case=case).report(operation, SHAPE, name, benchmark)
        return benchmark.extra_info

    for name in operation.contenders:
        found = described(name, memory=True)
        assert found["cpu_seconds"] >= 0
        if "peak_bytes" in found:
            assert found["peak_bytes"] == pytest.approx(20e6, rel=0.1)
        assert {"cpu_seconds", "peak_bytes"} & {*described(name, memory=False)} == {"cpu_seconds"}


def test_ours_takes_turns_with_the_yardstick(case):
    """Ours alone: whoever else is measured has the yardstick's own result."""
    called = []
    operation = Operation("turns", "turns", anything)
    for name in ("snnet", "other"):
        operation.contender(name, lambda case: lambda batch: called.append("contender"))
    operation.yardstick("bare", lambda case: lambda batch: called.append("bare"))
    assert measured(operation, case, "snnet", 2).extra_info["yardstick_seconds"] > 0
    assert called[-7:-1] == ["contender", "contender", "bare"] * 2  # cold, warm and the yardstick
    assert "yardstick_seconds" not in measured(operation, case, "other", 2).extra_info


def test_a_contender_that_runs_out_of_memory_is_skipped(case):
    operation = Operation("failing", "failing", anything)

    @operation.contender("runs out of memory")
    def failing(case):
        left = [5]

        def run(batch):
            left[0] -= 1
            if left[0] == 0:
                raise torch.OutOfMemoryError("no room")

        return run

    with pytest.raises(pytest.skip.Exception, match="out of memory: no room"):
        measured(operation, case, "runs out of memory", 6)


def test_every_kind_of_running_out_of_memory_is_skipped(case):
    operation = Operation("failing", "failing", anything)

    def wordless(batch):
        raise MemoryError

    def other(batch):
        raise RuntimeError("something else")

    operation.contender("wordless", lambda case: wordless)
    operation.contender("torch", lambda case: lambda batch: torch.empty(1 << 60, dtype=torch.uint8))
    operation.contender("other", lambda case: other)
    with pytest.raises(pytest.skip.Exception, match=r"^out of memory: MemoryError$"):
        measured(operation, case, "wordless")
    with pytest.raises(pytest.skip.Exception, match=r"^out of memory: .*allocate memory"):
        measured(operation, case, "torch")
    with pytest.raises(RuntimeError, match="something else"):
        measured(operation, case, "other")


def test_what_a_contender_writes_is_put_back_before_each_call(case):
    memory, labels = case.memory.clone(), case.label_memory.row_bits.clone()
    before = []

    def gate(case, batch, form):
        same_update(case, batch, form.memory, form.kept)

    operation = Operation("update", "update", gate, inputs=("similarity",))

    def updating(update):
        def build(case):
            form = Ours(case)

            def run(batch):
                before.append(
                    torch.equal(form.memory, memory) and torch.equal(form.kept.values, case.lists.values)
                )
                before[-1] &= torch.equal(form.stored.row_bits, labels)
                update(form, batch)
                form.stored.write_(batch.index, sk.mplp(form.memory, batch.index, 0.7))
                return form

            return run

        return build

    @operation.contender("snnet")
    @updating
    def ours(form, batch):
        form.update_(batch.index, batch.features, batch.similarity)

    @operation.contender("forgets the lists")
    @updating
    def forgetful(form, batch):
        sk.update_memory_(form.memory, batch.index, batch.features, 0.3)

    measured(operation, case, "snnet", 3)
    # Each of three rounds is followed by a warm call at once; the last call is the one that is compared.
    assert before == [True] * 3 + [True, False] * 3 + [True]
    with pytest.raises(AssertionError, match="similarities in the lists: "):
        measured(operation, case, "forgets the lists")
    assert torch.equal(case.memory, memory) and torch.equal(case.label_memory.row_bits, labels)


def test_every_write_after_a_reset_changes_bits(case):
    batch, writer = case.batches[0], label_memory.Writer(case, Case.own_label_memory, attrgetter("labels"))
    for _ in range(3):
        case.reset()
        before = writer.stored.row_bits.clone()
        assert not torch.equal(writer(batch).row_bits, before)
    case.forget()


def test_a_list_that_misses_an_entry_is_unequal(case):
    index = case.batches[0].index
    exact = (case.memory[index].double() @ case.memory.double().t()).float()
    same_lists(case.lists, index, exact)
    missing = sk.NeighborLists(*(table.clone() for table in case.lists[:4]))
    missing.counts[index[0]] = 0
    above = int((exact[0] > missing.floors[index[0]] + ROUNDING).sum())
    assert above > 1
    with pytest.raises(
        AssertionError, match=f"the lists: {above} similarities above their floor are missing"
    ):
        same_lists(missing, index, exact)
    without_mirrors = case.lists._replace(mirrors=case.lists.mirrors[:, :0])  # as on a GPU
    same_lists(without_mirrors, index, exact)
    mirrored = sk.NeighborLists(*(table.clone() for table in case.lists))
    mirrored.mirrors[index[0], 0] = (mirrored.mirrors[index[0], 0] + 1) % 100
    with pytest.raises(AssertionError, match="columns of the mirrors"):
        same_lists(mirrored, index, exact)


def test_an_update_reaches_the_lists_of_others_and_nothing_else_of_the_matrix(case):
    batch, form = case.batches[0], Ours(case)
    form.update_(batch.index, batch.features, batch.similarity)
    same_update(case, batch, form.memory, form.kept)
    without = sk.NeighborLists(*(table.clone() for table in form.kept))
    without = without._replace(mirrors=without.mirrors[:, :0])  # as on a GPU
    same_update(case, batch, form.memory, without)
    others = torch.ones(SHAPE.n, dtype=torch.bool).index_fill_(0, batch.index, False)
    for name in ("columns", "values", "counts"):  # as they were before
        getattr(without, name)[others] = getattr(case.lists, name)[others]
    with pytest.raises(AssertionError, match="similarities in the lists of others"):
        same_update(case, batch, form.memory, without)
    for name in ("columns", "values", "counts"):
        getattr(without, name).copy_(getattr(form.kept, name))
    own = without.columns == batch.index[0]
    own[batch.index] = False
    image = int(own.any(1).nonzero()[0])
    without.counts[image] = own[image].nonzero()[0, 0]  # the entry and those after it are dropped
    with pytest.raises(AssertionError, match=r"of others: .* similarities above their floor are missing"):
        same_update(case, batch, form.memory, without)
    matrix = form.memory @ form.memory.t()
    matrix[others] = torch.where(others, case.matrix[others], matrix[others])
    same_update(case, batch, form.memory, matrix)
    image, other = others.nonzero()[:2].flatten().tolist()
    matrix[image, other] = 9.0
    with pytest.raises(AssertionError, match="S outside of the batch"):
        same_update(case, batch, form.memory, matrix)
    case.forget()


def test_graphs_of_something_else_are_no_jaccard_distances():
    sparse = pytest.importorskip("scipy.sparse", reason="the graphs need pip install '.[bench]'")
    case = jaccard_graph.TrainingSet(Shape("tiny", 600, 64, 600), CPU)
    n = case.part.size

    def thresholded(batch):
        similarity = batch.features @ batch.features.t()
        distances = np.where(similarity.numpy() > 0.6, 0.5, 1).astype(np.float32)
        np.fill_diagonal(distances, 0)
        return distances

    diagonal = sparse.coo_matrix((np.zeros(n, np.float32), (np.arange(n), np.arange(n))), shape=(n, n))
    wrong = {
        "empty": lambda batch: sparse.csr_matrix((n, n), dtype=np.float32),
        "diagonal": lambda batch: diagonal,
    }
    for form in (*wrong.values(), thresholded):
        with pytest.raises(AssertionError, match="differ by more than 1e-5, of"):
            jaccard_graph.distances_gate(case, case.batches[0], form)
    jaccard_graph.distances_gate(case, case.batches[0], jaccard_graph.graph)


def test_gates_know_rounding_from_an_error(case):
    batch = case.batches[0]
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
    with pytest.raises(AssertionError, match="twice"):
        same_neighbors(case, batch, (other, found[1]), 3)


def test_the_inputs_are_made_to_defeat_thresholding(case):
    above = (case.matrix > 0.6).sum(1).float().mean()
    positives = case.label_memory.to_dense().sum(1).float().mean()
    assert 4 < above < 25 and positives < 0.8 * above


def test_a_bare_product_is_the_product_alone(case):
    batch = case.batches[1]
    torch.testing.assert_close(BareProduct(case).iteration(batch), batch.similarity)


@pytest.mark.parametrize("size", [8, 200, 300])
def test_labels_after_twenty_iterations_are_checked_for_200_rows(case, size, monkeypatch):
    """The batch comes first; of a larger one only a part is checked."""
    checked = []

    def labels(memory, index, *options):
        checked.extend(index.tolist())
        return index

    monkeypatch.setattr(iteration, "reference", SimpleNamespace(mplp=labels))
    monkeypatch.setattr(iteration, "same_predictions", lambda memory, index, expected, found: None)
    form = SimpleNamespace(memory=case.memory, labels=lambda index: [index])
    iteration.same_labels_at_the_end(case, SimpleNamespace(index=torch.arange(size), size=size), form)
    assert len(checked) == 200
    assert checked[:size] == list(range(min(size, 200)))


def test_the_fastest_of_several_ways_is_found_by_the_clock(case, monkeypatch):
    now, slow = [0.0], {"first": 3.0, "second": 1.0, "third": 2.0}
    monkeypatch.setattr("benchmarks.clock.time.perf_counter", lambda: now[0])

    def way(name):
        def call(argument):
            assert argument == "argument"
            now[0] += slow[name]
            return name

        return call

    assert fastest(map(way, slow), CPU, "argument")("argument") == "second"
    left, right = torch.rand(5, 7), torch.rand(9, 7)
    for form in (*PRODUCTS.values(), fastest_product(left, right)):
        torch.testing.assert_close(form(left, right), left @ right.t())


@pytest.mark.parametrize("name", FORMS)
def test_forms_equal_the_reference(case, name, monkeypatch):
    """Labels, neighbours, P, memory and S of a step, after another step was put back; compiled code runs as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    form, batch = FORMS[name]["make"](case), case.batches[0]
    P, index = case.label_memory.to_dense().bool(), batch.index
    assert form.stored.rows(index).shape == (8, SHAPE.n)
    form.step(case.batches[1])
    case.reset()
    (main, symmetric, of_neighbor), neighbors = answer = form.step(batch)
    same_step(case, batch, (*answer, form))
    expected = sk.unpack_labels(reference.mplp(case.memory, index), SHAPE.n)
    assert torch.equal(as_bool(main, SHAPE.n), expected)
    assert torch.equal(as_bool(symmetric, SHAPE.n), P[:, index].t())
    assert torch.equal(as_bool(of_neighbor, SHAPE.n), P[neighbors[0].flatten()])
    after = P.clone()
    after[index] = expected
    assert torch.equal(form.stored.by_row, after) and torch.equal(form.stored.by_column, after.t())
    case.forget()


def test_labels_with_a_matrix_are_those_of_the_reference_where_similarities_tie(case):
    """Ties, fewer than three candidates, none in the last row, and ranks beyond the least one."""
    memory = case.memory.clone()
    memory[40:44] = memory[40]
    memory[-1] = 0
    matrix = memory @ memory.t()
    index = torch.tensor([40, 41, 3, 77, 0, SHAPE.n - 1])
    expected = sk.unpack_labels(reference.mplp(memory, index, cache=matrix), SHAPE.n)
    for ranks in (ranks_of, ranks_in_parts):
        labels = predict_labels_from_matrix(index, matrix[index], matrix, ranks)
        assert torch.equal(labels, expected) and labels[-1].sum() == 1


PEAKS = """
import torch
from benchmarks.peak_memory import Watch

def peak(call):
    watch = Watch(torch.device("cpu"))
    watch.start()
    answer = call()  # alive at the end
    return watch.found().get("peak_bytes", -1)

freed = [torch.ones(5_000_000) for _ in range(4)]
del freed  # none of it serves a call unseen
for call in (lambda: torch.ones(5_000_000), lambda: torch.ones(500_000).sum(), lambda: None):
    print(sorted(peak(call) for _ in range(5))[2])  # the first may load code
"""


def test_peak_memory_of_a_call():
    """In a process of its own, as a benchmark has it: this one may hold anything."""
    run = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True, check=True)
    large, small, nothing = map(int, run.stdout.split())
    if nothing < 0:
        pytest.skip("this system does not tell its peak memory")
    assert large == pytest.approx(20e6, rel=0.1) and small == pytest.approx(2e6, rel=0.5) and nothing < 1e6


def test_peak_memory_of_a_call_on_a_gpu_is_that_of_its_allocator(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 130)
    watch = Watch(torch.device("cuda"))
    watch.start()
    assert watch.found()["peak_bytes"] == 30 and asked == [torch.device("cuda")]


def test_shapes_of_both_devices():
    assert [(s.batch, s.n, s.d) for s in shapes("cpu")] == [(64, 12_936, 2048), (64, 12_936, 512)]
    asked = {(s.batch, s.n, s.d) for s in shapes("cuda")}
    assert {(128, 12_936, 2048), (64, 12_936, 512), (128, 32_621, 2048), (1024, 1_000_000, 512)} <= asked
    assert [s.n for s in growth_shapes("cpu")] == [6_468, 12_936, 32_621, 100_000]
    with pytest.raises(ValueError, match="got 'huge'"):
        shapes("cpu", ["huge"])
    assert shapes("cpu", ["million"]) == []
    assert [s.n for s in growth_shapes("cpu", ["million"])] == [1_000_000]
    assert [s.n for s in growth_shapes("cpu", ["market", "million"])][-2:] == [100_000, 1_000_000]
    assert growth_shapes("cuda", ["million"]) == []


def test_contenders_of_other_precisions_are_for_a_gpu():
    operation = Operation("labels", "labels", same_labels)
    operation.contender("snnet", lambda case: labels_by(case, 0.6))
    operation.rounded(lambda case: labels_by(case, 0.6), tf32=same_labels)
    assert operation.names("cpu") == ["snnet"]
    assert operation.names("cuda") == ["snnet", "snnet-tf32"]


def test_what_a_forced_backend_does_not_serve_is_skipped(monkeypatch):
    """The inputs are made all the same: they are not what is measured."""
    case = Case(SHAPE, CPU)
    operation = Operation("labels", "labels", anything, inputs=("labels",))
    operation.contender("served", lambda case: lambda batch: None)
    operation.contender("not served", lambda case: labels_by(case, 0.6))
    monkeypatch.setattr("snnet_kernels.backends.table.FORCED", "triton")
    assert len(measured(operation, case, "served").seconds) == 4
    with pytest.raises(pytest.skip.Exception, match="SNNET_BACKEND=triton does not serve mplp"):
        measured(operation, case, "not served")


def test_cpu_clock_measures_the_call(monkeypatch):
    now = [5.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    clock = CpuClock()
    monkeypatch.setattr("benchmarks.clock.time.perf_counter", lambda: now[0])
    clock._swept = type("Sweep", (), {"sum": lambda self: takes(7.0)})()
    assert clock.warm(lambda: takes(0.25)) == 0.25
    assert clock.cold(lambda: takes(0.25)) == 0.25 and now == [12.5]  # the sweep before it is not counted


def fake_cuda(monkeypatch: pytest.MonkeyPatch, now: list[float], log: list[str]) -> CudaClock:
    """A clock of a device whose events read ``now`` and write down, in order, what is asked of it."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")
            self.at = now[0]

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    properties = type("Properties", (), {"L2_cache_size": 4096})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("busy"))
    return CudaClock(CPU)


def test_cuda_clock_times_between_events_and_waits(monkeypatch):
    now, log, swept = [0.0], [], []
    clock = fake_cuda(monkeypatch, now, log)
    real_sum = torch.sum
    monkeypatch.setattr(torch, "sum", lambda *a, **k: (swept.append(len(log)), real_sum(*a, **k))[1])

    def call() -> None:
        log.append("call")
        now[0] += 1.5e-3

    for measured, sweeps in ((clock.warm, []), (clock.cold, [0])):
        assert measured(call) == pytest.approx(1.5e-3)
        assert log == ["busy", "event", "call", "event", "wait"] and swept == sweeps
        log.clear()


def test_a_call_that_fails_does_not_turn_the_clock_of_the_next(case, monkeypatch):
    """A clock that runs on after a failure would give the next contender a negative time."""
    now = [0.0]
    clock = fake_cuda(monkeypatch, now, [])
    monkeypatch.setattr("benchmarks.runner.clock_of", lambda device: clock)
    monkeypatch.setattr("tests.benchmarks.test_runner.time.perf_counter", clock)
    operation = Operation("once", "once", anything)

    def takes(batch) -> None:
        now[0] += 0.25

    operation.contender("not served", lambda case: lambda batch: 1 / 0, once=True)
    operation.contender("served", lambda case: takes, once=True)
    with pytest.raises(ZeroDivisionError):
        measured(operation, case, "not served")
    now[0] += 1.0  # until the next is made
    assert measured(operation, case, "served").seconds == [0.25]


def test_captured_iteration_replays_on_the_batch_it_is_given(case, monkeypatch):
    """With a graph that replays by running again, its answers are those of an eager head."""

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
    captured_on: list[Stream] = []
    steps: list[CapturedIteration] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext(captured_on.append(stream))
    )

    eager = Head(case)
    monkeypatch.setattr(CapturedIteration, "WARM_UP", 0)
    made = CapturedIteration.__init__
    monkeypatch.setattr(
        CapturedIteration, "__init__", lambda self, *args: (steps.append(self), made(self, *args))[1]
    )
    replayed = Head(case, captured="ieee")
    assert len(graphs) == len(captured_on) == 1
    for batch in case.batches[1:4]:
        expected, gradient = eager.iteration(batch)
        loss, found = replayed.iteration(batch)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.equal(found, gradient)
    case.forget()
    assert torch.equal(replayed.memory, eager.memory)
    assert torch.equal(replayed.stored.row_bits, eager.stored.row_bits)
