"""The head on a GPU, and iterations in CUDA graphs and compiled; ``test_gpu.py`` has the operations."""

from collections.abc import Callable

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels.backends import gpu, table
from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.testing import clustered_features
from tests.kernels.gpu_checks import (
    DEVICE,
    REAL,
    assert_close,
    lists_on_device,
    on_gpu_only,
)
from tests.kernels.inputs import batch_of
from tests.kernels.list_checks import check_lists, dense

pytestmark = pytest.mark.gpu if REAL else []


def warm_up(head: sk.SNNetHead, iteration: Callable[[sk.SNNetHead], object]) -> None:
    """Two iterations before a capture tune and compile what is compiled on first use; the state is as before."""
    state = {name: value.clone() for name, value in head.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            iteration(head)
    torch.cuda.current_stream().wait_stream(stream)
    head.load_state_dict(state)


def run_head(head: sk.SNNetHead, steps: int, n: int, d: int) -> list[torch.Tensor]:
    losses = []
    for step in range(steps):
        index = batch_of(n, 16, step).to(DEVICE)
        features = clustered_features(16, d, seed=step + 1).to(DEVICE).requires_grad_()
        loss = head(features, index)
        loss.backward()
        head.update_(index, features.detach())
        losses += [loss.detach(), features.grad]
    return losses


def new_head(n: int, d: int, **options) -> sk.SNNetHead:
    head = sk.SNNetHead(n, d, device=DEVICE, **options)
    head.initialize_(clustered_features(n, d).to(DEVICE))
    head.momentum = 0.2
    return head


def test_the_cuda_library_serves_a_head_alone(monkeypatch):
    """With SNNET_BACKEND=cuda."""
    n, d = (300, 24) if REAL else (90, 24)
    expected = run_head(new_head(n, d), 2, n, d)
    monkeypatch.setattr(table, "FORCED", "cuda")
    monkeypatch.setattr(table, "require_forced_backend", lambda operation, device_type: None)  # emulated: cpu
    for found, wanted in zip(run_head(new_head(n, d), 2, n, d), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("neighbors", [20, 0])
@pytest.mark.parametrize("kind", ["mmcl", "l2"])
def test_head_small(neighbors, kind):
    (n, steps), d = (300, 3) if REAL else (90, 2), 24
    head = new_head(n, d, neighbors=neighbors, loss_kind=kind)
    twin = sk.SNNetHead(n, d, neighbors=neighbors, loss_kind=kind, device=DEVICE)
    twin.load_state_dict(head.state_dict())
    ours = run_head(head, steps, n, d)
    for first, second in zip(ours, run_head(twin, steps, n, d), strict=True):
        assert torch.equal(first, second)  # bits do not depend on the run
    assert head.label_statistics()["positives"] > 1
    exact = head.memory.features.double()
    if neighbors:
        check_lists(head.memory.lists.tables, exact @ exact.t(), 3e-6)
        again = sk.SNNetHead(n, d, neighbors=neighbors, loss_kind=kind, device=DEVICE)
        again.load_state_dict(head.state_dict())  # takes the lists as they are
        for first, second in zip(
            run_head(head, steps - 1, n, d), run_head(again, steps - 1, n, d), strict=True
        ):
            assert torch.equal(first, second)


@on_gpu_only
@pytest.mark.parametrize("kind", ["mmcl", "l2"])
@pytest.mark.parametrize("source", ["memory", "feature"])
def test_nothing_waits_for_the_gpu(kind, source):
    head = new_head(500, 32, neighbors=20, loss_kind=kind, label_source=source)
    run_head(head, 1, 500, 32)
    index, features = (
        batch_of(500, 16).to(DEVICE),
        clustered_features(16, 32, seed=9).to(DEVICE).requires_grad_(),
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = head(features, index)
        loss.backward()
        head.update_(index, features.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


@on_gpu_only
@pytest.mark.parametrize("neighbors", [20, 0])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_an_iteration_in_a_cuda_graph(neighbors, precision, monkeypatch):
    # The loss without similarities is the streaming one.
    monkeypatch.setattr(gpu, "HELD_SIMILARITIES", 0)
    monkeypatch.setattr(gpu, "_SPARSE_UP_TO", dict.fromkeys(gpu._SPARSE_UP_TO, 0))
    n, d, batch = 700, 64, 32
    sk.set_matmul_precision(precision)
    try:
        eager, captured = (new_head(n, d, neighbors=neighbors) for _ in range(2))
        index, features = batch_of(n, batch).to(DEVICE), clustered_features(batch, d, seed=1).to(DEVICE)
        live = features.clone().requires_grad_()

        def iteration(head):
            live.grad = None
            loss = head(live, index)
            loss.backward()
            head.update_(index, live.detach())
            return loss

        warm_up(captured, iteration)
        captured.memory.current_lists()  # built outside the graph, which goes on writing to these buffers
        graph = torch.cuda.CUDAGraph()
        live.grad = None
        with torch.cuda.graph(graph):
            loss = iteration(captured).detach()
        gradient = live.grad  # the graph writes it; the eager iteration gets another
        for step in range(3):
            index.copy_(batch_of(n, batch, step))
            with torch.no_grad():
                live.copy_(clustered_features(batch, d, seed=step + 5))
            graph.replay()
            expected = iteration(eager)
            assert_close(loss, expected.detach().cpu(), 1e-6)
            assert_close(gradient, live.grad.cpu(), 1e-5)
        assert torch.equal(captured.pseudo_labels.row_bits, eager.pseudo_labels.row_bits)
        if neighbors:
            exact = captured.memory.features.double()
            check_lists(captured.memory.lists.tables, exact @ exact.t(), 3e-6)
            ours, theirs = (head.memory.lists.tables for head in (captured, eager))
            assert torch.equal(dense(ours).nan_to_num(-9), dense(theirs).nan_to_num(-9))
            assert torch.equal(ours.floors, theirs.floors)
    finally:
        sk.set_matmul_precision("ieee")


@on_gpu_only
def test_compiled_iteration_equals_eager():
    def iteration(features, index, memory, columns, values, counts, floors, mirrors):
        lists = NeighborLists(columns, values, counts, floors, mirrors)
        similarity = sk.memory_similarity(features.detach(), memory)
        labels = sk.mplp(memory, index, lists=lists)
        neighbors = sk.nearest_neighbors(memory, index, lists=lists)[0]
        loss = sk.fused_mutual_label_loss(features, memory, [labels], [1.0], similarity=similarity)
        sk.update_memory_(memory, index, features.detach(), 0.3, lists=lists, similarity=similarity)
        return loss, labels, neighbors

    results = []
    for function in (iteration, torch.compile(iteration, fullgraph=True)):
        memory, index = clustered_features(900, 64).to(DEVICE), batch_of(900, 32).to(DEVICE)
        lists = lists_on_device(memory, 20, 40)
        for step in range(3):
            live = clustered_features(32, 64, seed=step).to(DEVICE).requires_grad_()
            loss, labels, neighbors = function(live, index + step % 2, memory, *lists)
            loss.backward()
        results.append((loss.detach(), labels, neighbors, live.grad, memory, lists.floors))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@on_gpu_only
def test_a_captured_iteration_survives_epochs():
    """Captured once, replayed over three epochs of what a training loop calls; its twin runs eagerly."""
    n, d, batch = 700, 64, 32
    eager, captured = (new_head(n, d, neighbors=40) for _ in range(2))
    index, live = batch_of(n, batch).to(DEVICE), clustered_features(batch, d, seed=1).to(DEVICE)

    def iteration(head):
        loss = head(live, index)
        head.update_(index, live)
        return loss

    warm_up(captured, iteration)
    captured.memory.build_lists_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = iteration(captured).detach()
    places = {name: buffer.data_ptr() for name, buffer in captured.named_buffers()}
    asked = captured.memory.lists.asked
    for epoch in range(3):
        for head in (eager, captured):
            head.momentum = 0.1 * epoch
            head.warmup = True
            head.update_(index, live)
            head.warmup = False
            head.memory.build_lists_()
            head.memory.renew_lists_()
            head.memory.features.data[epoch] = clustered_features(1, d, seed=epoch)[0].to(DEVICE)
            head.mark_written_()
        for step in range(3):
            index.copy_(batch_of(n, batch, 3 * epoch + step))
            live.copy_(clustered_features(batch, d, seed=3 * epoch + step + 5))
            graph.replay()
            assert_close(loss, iteration(eager).detach().cpu(), 1e-6)
        # The replay wrote M, its lists and P, which no Python code saw.
        assert torch.equal(captured.pseudo_labels.row_bits, eager.pseudo_labels.row_bits)
        assert torch.equal(captured.pseudo_labels.column_bits, eager.pseudo_labels.column_bits)
        exact = captured.memory.features.double()
        check_lists(captured.memory.lists.tables, exact @ exact.t(), 3e-6)
        assert int(captured.memory.lists.asked) == int(eager.memory.lists.asked) == 3 * 2 * batch
    assert {name: buffer.data_ptr() for name, buffer in captured.named_buffers()} == places
    assert captured.memory.lists.asked is asked  # no buffer, but the replays write it
