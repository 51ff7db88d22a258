"""Every operation on a GPU against the reference on the CPU: labels and indices to the bit, floats to rounding.

``SNNET_TEST_DEVICE=cpu`` runs it where the CUDA kernels are emulated (see cuda_on_cpu). Tests named ``small`` are
those that also run under compute-sanitizer.
"""

import os

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import ops, reference
from snnet_kernels.backends import gpu, table
from snnet_kernels.testing import clustered_features

DEVICE = os.environ.get("SNNET_TEST_DEVICE", "cuda")
REAL = DEVICE != "cpu"
pytestmark = pytest.mark.gpu if REAL else []
on_gpu_only = pytest.mark.skipif(not REAL, reason="needs a CUDA device")
# n odd, rows of 16-byte multiples or not, rows larger and smaller than a block
SIZES = [(1, 5), (7, 3), (90, 12), (257, 33)] + ([(1000, 64), (2049, 130), (12_936, 256)] if REAL else [])
WEIGHTS = [1.0, 0.8, 0.6]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """As in the other kernel tests; deterministic algorithms would make cuBLAS ask for a workspace setting.

    So that on a GPU blocks are filled with NaN and freed: the allocator hands them out again.
    """
    torch.utils.deterministic.fill_uninitialized_memory = True
    if REAL:
        for count, size in ((64, 1 << 17), (8, 1 << 24)):  # of both its pools
            [torch.full((size,), torch.nan, device=DEVICE) for _ in range(count)]
    yield


@pytest.mark.parametrize("by_camera", [False, True])
def test_small_jaccard_graph_is_that_of_the_cpu(by_camera):
    features = torch.where(exact_rows(150, 16) > 0, 0.25, -0.25)
    cameras = torch.arange(150) % 4 if by_camera else None
    for weights in ("softmax", "relative"):
        graphs = [
            sk.jaccard_graph(x, 10, 4, max_distance=0.9, weights=weights, cameras=c)
            for x, c in ((features, cameras), on_device(features, cameras))
        ]
        assert len(graphs[0].values) > 1000 and graphs[1].values.device.type == "cpu"
        for ours, theirs in zip(*graphs, strict=True):
            assert torch.equal(ours, theirs)


@on_gpu_only
def test_both_kinds_of_kernels_are_there():
    assert table.AVAILABLE["cuda"] and table.AVAILABLE["triton"]


def batch_of(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(n, (size,), generator=torch.Generator().manual_seed(seed))


def exact_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Small integers times a power of two: every product is exact in float32, with many ties."""
    return torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(seed)).float() / 4


def on_device(*tensors):
    return [tensor if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def label_sets(batch: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        reference.pack_labels(torch.rand(batch, n, generator=generator) < share)
        for share in (0.01, 0.05, 0.3)
    ]


def assert_close(ours: torch.Tensor, exact: torch.Tensor, bound: float = 2e-6) -> None:
    error = (ours.cpu().double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-30)
    assert error < bound


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_label_memory_small(n, d):
    flags = torch.rand(9, n, generator=torch.Generator().manual_seed(0)) < 0.4
    packed = sk.pack_labels(flags.to(DEVICE))
    assert torch.equal(packed.cpu(), reference.pack_labels(flags))
    assert torch.equal(sk.unpack_labels(packed, n).cpu(), flags)
    ours, theirs = sk.PseudoLabelMemory(n, device=DEVICE), sk.PseudoLabelMemory(n)
    for step in range(3):
        index = batch_of(n, 9, step)
        ours.write_(index.to(DEVICE), packed.roll(step, 0))
        reference.write_labels_(theirs.row_bits, theirs.column_bits, index, packed.cpu().roll(step, 0))
    assert torch.equal(ours.row_bits.cpu(), theirs.row_bits)
    assert torch.equal(ours.column_bits.cpu(), theirs.column_bits)
    inquiry = torch.cat([batch_of(n, 6), torch.tensor([-1])])
    assert torch.equal(ours.columns(inquiry.to(DEVICE)).cpu(), theirs.columns(inquiry))


@pytest.mark.parametrize(
    "form", ["cache", "rows and cache", "marked cache", "rows and marked cache", "streaming", "rows"]
)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_labels_small(n, d, form):
    if not REAL and n > 100 and "cache" not in form:
        pytest.skip("too large to interpret")
    memory = exact_rows(n, d) if d < 64 else (clustered_features(n, d) * 64).round() / 64
    index = batch_of(n, 13)
    cache = memory @ memory.t()
    rows = exact_rows(13, d, 1) @ memory.t() if "rows" in form else None
    decisions = [(0.5625, 3, False), (0.0, 10, False), (0.6, 10, True), (-99.0, 2, False)]
    if not REAL and "cache" not in form:
        decisions = decisions[::2]  # triton_label_cases.py interprets all
    for threshold, min_rank, strict in decisions:
        expected = reference.mplp(
            memory, index, threshold, min_rank, cache=cache, query_rows=rows, strict=strict
        )
        at_hand, given, m, i = on_device(cache if "cache" in form else None, rows, memory, index)
        blocks = sk.mark_cache_blocks(at_hand, threshold) if "marked" in form else None
        labels = sk.mplp(
            m, i, threshold, min_rank, cache=at_hand, query_rows=given, blocks=blocks, strict=strict
        )
        assert torch.equal(labels.cpu(), expected)
        bits, expected_bits = sk.PseudoLabelMemory(n, device=DEVICE), sk.PseudoLabelMemory(n)
        for _ in range(2):
            sets = ops.mine_labels_(
                m, i, bits.row_bits, bits.column_bits, threshold, min_rank,
                cache=at_hand, query_rows=given, blocks=blocks, strict=strict,
            )  # fmt: skip
            neighbor = reference.nearest_neighbors(memory, index, cache=cache, query_rows=rows)[0].flatten()
            expected_sets = (
                expected,
                reference.gather_labels(expected_bits.column_bits, index),
                reference.gather_labels(expected_bits.row_bits, neighbor),
            )
            reference.write_labels_(expected_bits.row_bits, expected_bits.column_bits, index, expected)
            for ours, theirs in zip(sets, expected_sets, strict=True):
                assert torch.equal(ours.cpu(), theirs)
        assert torch.equal(bits.column_bits.cpu(), expected_bits.column_bits)
    for k in (1, 4, n + 2):
        expected_neighbors, expected_similarity = reference.nearest_neighbors(
            memory, index, k, cache=cache, query_rows=rows
        )
        neighbors, similarity = sk.nearest_neighbors(m, i, k, cache=at_hand, query_rows=given)
        assert torch.equal(neighbors.cpu(), expected_neighbors)
        assert torch.equal(similarity.cpu(), expected_similarity)


@pytest.mark.parametrize("cached", [True, False])
def test_strided_arguments_small(cached):
    n, d, batch = 70, 12, 9
    memory, wide = exact_rows(n, d).to(DEVICE), exact_rows(batch, 2 * d, 1).to(DEVICE)
    index, rows = batch_of(n, 2 * batch).to(DEVICE)[::2], (memory @ wide[:, ::2].t()).t()
    cache = sk.build_similarity_cache(memory) if cached else None
    for strided, plain in (
        (sk.memory_similarity(wide[:, ::2], memory), sk.memory_similarity(wide[:, ::2].clone(), memory)),
        *(
            (call(index, rows), call(index.clone(), rows.contiguous()))
            for call in (
                lambda i, r: sk.mplp(memory, i, 0.5625, cache=cache, query_rows=r),
                lambda i, r: sk.nearest_neighbors(memory, i, 3, cache=cache, query_rows=r)[0],
            )
        ),
    ):
        assert torch.equal(strided, plain)
    labels = [label.to(DEVICE) for label in label_sets(batch, n)]
    for kind in ("mmcl", "l2"):
        losses = [
            sk.fused_mutual_label_loss(features, memory, labels, WEIGHTS, kind=kind)
            for features in (wide[:, ::2], wide[:, ::2].contiguous())
        ]
        assert torch.equal(*losses)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_backward_product_small(precision):
    """The dense backward product reads the memory along its columns."""
    memory, features = clustered_features(40, 12).to(DEVICE), clustered_features(7, 12, seed=1).to(DEVICE)
    grad = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    sk.set_matmul_precision(precision)
    try:
        live = features.clone().requires_grad_()
        (sk.memory_similarity(live, memory) * grad).sum().backward()
    finally:
        sk.set_matmul_precision("ieee")
    assert_close(live.grad, (grad.double() @ memory.double()).cpu(), 5e-6)


@pytest.mark.parametrize("kind", ["mmcl", "l2"])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_loss_small(n, d, kind, monkeypatch):
    memory, features = clustered_features(n, d), clustered_features(11, d, seed=1)
    labels = label_sets(11, n)
    similarity = features @ memory.t()
    options = {"kind": kind, "hard_negative_ratio": 0.03}
    exact = features.double().requires_grad_()
    # one selection for both, so that near ties cannot make them choose different entries
    s = similarity.double() + (exact - exact.detach()) @ memory.double().t()
    loss = reference.mutual_label_loss(s, labels, WEIGHTS, **options)
    loss.backward()
    for form in ("given", "features", "streaming", "similarity"):
        monkeypatch.setattr(gpu, "HELD_SIMILARITIES", 0 if form == "streaming" else 2**30)
        live = features.to(DEVICE).clone().requires_grad_()
        m, at_hand, *sets = on_device(memory, similarity, *labels)
        if form == "similarity":
            at_hand = at_hand + (live - live.detach()) @ m.t()
            ours = sk.mutual_label_loss(at_hand, sets, WEIGHTS, **options)
        else:
            at_hand = at_hand if form == "given" else None
            ours = sk.fused_mutual_label_loss(live, m, sets, WEIGHTS, similarity=at_hand, **options)
        ours.backward()
        assert_close(ours.detach(), loss.detach(), 1e-5)
        assert_close(live.grad, exact.grad, 1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.97, 1.0])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_update_small(n, d, momentum):
    memory, features = clustered_features(n, d), clustered_features(12, d, seed=1)
    features[3] = -memory[0]  # the blend is short, or zero: its row of the cache needs products of its own
    index = torch.cat([batch_of(n, 3), torch.zeros(2).long(), batch_of(n, 7, 1)])
    exact = memory.double()
    reference.update_memory_(exact, index, features.double(), momentum)
    m, i, f = on_device(memory, index, features)
    cache = sk.build_similarity_cache(m)
    blocks = sk.mark_cache_blocks(cache, 0.3)
    marks = blocks.bits.cpu().clone()
    sk.update_memory_(m, i, f, momentum, cache=cache, blocks=blocks)
    assert_close(m, exact, 1e-6 if momentum < 1 else 2e-6)
    reference.cache_blocks.update_cache_blocks_(sk.CacheBlocks(marks, 0.3), cache.cpu(), index.unique())
    assert torch.equal(blocks.bits.cpu(), marks)
    assert (cache.cpu().double() - exact @ exact.t()).abs().max() < 3e-6
    assert torch.equal(cache, cache.t())
    alone = memory.to(DEVICE)
    sk.update_memory_(alone, i, f, momentum)
    assert torch.equal(alone, m)


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


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["mmcl", "l2"])
def test_head_small(cache, kind):
    (n, steps), d = (300, 3) if REAL or cache else (90, 2), 24
    head = new_head(n, d, cache=cache, loss_kind=kind)
    twin = sk.SNNetHead(n, d, cache=cache, loss_kind=kind, device=DEVICE)
    twin.load_state_dict(head.state_dict())
    ours = run_head(head, steps, n, d)
    for first, second in zip(ours, run_head(twin, steps, n, d), strict=True):
        assert torch.equal(first, second)  # bits do not depend on the run
    assert head.label_statistics()["positives"] > 1
    exact = head.memory.features.double()
    if cache:
        assert (head.memory.cache - exact @ exact.t()).abs().max() < 3e-6


@on_gpu_only
@pytest.mark.parametrize("kind", ["mmcl", "l2"])
@pytest.mark.parametrize("source", ["memory", "feature"])
def test_nothing_waits_for_the_gpu(kind, source):
    head = new_head(500, 32, cache=True, loss_kind=kind, label_source=source)
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
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_an_iteration_in_a_cuda_graph(cache, precision, monkeypatch):
    monkeypatch.setattr(gpu, "HELD_SIMILARITIES", 0)  # the loss without a cache is the streaming one
    n, d, batch = 700, 64, 32
    sk.set_matmul_precision(precision)
    try:
        eager, captured = (new_head(n, d, cache=cache) for _ in range(2))
        index, features = batch_of(n, batch).to(DEVICE), clustered_features(batch, d, seed=1).to(DEVICE)
        live = features.clone().requires_grad_()

        def iteration(head):
            live.grad = None
            loss = head(live, index)
            loss.backward()
            head.update_(index, live.detach())
            return loss

        state = {name: value.clone() for name, value in captured.state_dict().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # tunes and compiles what is compiled on first use
            for _ in range(2):
                iteration(captured)
        torch.cuda.current_stream().wait_stream(stream)
        captured.load_state_dict(state)
        captured.memory.current_cache()  # built outside the graph, which goes on writing to this buffer
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
        if cache:
            lacking = sk.mark_cache_blocks(captured.memory.cache).bits & ~captured.memory.block_bits
            assert not lacking.any()
    finally:
        sk.set_matmul_precision("ieee")


@on_gpu_only
def test_flags_around_the_operations_change_nothing():
    memory, index = clustered_features(3000, 256).to(DEVICE), batch_of(3000, 64).to(DEVICE)
    features = clustered_features(64, 256, seed=1).to(DEVICE)
    before = [
        sk.memory_similarity(features, memory),
        sk.mplp(memory, index),
        sk.build_similarity_cache(memory),
    ]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            after = [
                sk.memory_similarity(features, memory),
                sk.mplp(memory, index),
                sk.build_similarity_cache(memory),
            ]
    finally:
        torch.set_float32_matmul_precision(precision)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (before[0].double() - features.double() @ memory.double().t()).abs().max() < 1e-6


@on_gpu_only
@pytest.mark.parametrize(("precision", "bound"), [("ieee", 1e-6), ("tf32x3", 2e-6), ("tf32", 2e-3)])
def test_precision_of_products(precision, bound):
    memory, features = (
        clustered_features(5000, 512).to(DEVICE),
        clustered_features(70, 512, seed=1).to(DEVICE),
    )
    sk.set_matmul_precision(precision)
    try:
        ours = sk.memory_similarity(features, memory)
    finally:
        sk.set_matmul_precision("ieee")
    assert (ours.double() - features.double() @ memory.double().t()).abs().max() < bound


@on_gpu_only
def test_bf16_streaming_labels_are_those_of_float32():
    memory, index = clustered_features(5000, 256).to(DEVICE), torch.arange(0, 5000, 29, device=DEVICE)
    labels = sk.mplp(memory, index)
    sk.set_matmul_precision("bf16")
    try:
        assert torch.equal(sk.mplp(memory, index), labels)
    finally:
        sk.set_matmul_precision("ieee")


@on_gpu_only
def test_compiled_iteration_equals_eager():
    def iteration(features, index, memory, cache, row_bits, column_bits):
        similarity = sk.memory_similarity(features.detach(), memory)
        sets = ops.mine_labels_(memory, index, row_bits, column_bits, cache=cache)
        loss = sk.fused_mutual_label_loss(features, memory, sets, WEIGHTS, similarity=similarity)
        return loss, sets[0]

    results = []
    for function in (iteration, torch.compile(iteration, fullgraph=True)):
        memory, bits = clustered_features(900, 64).to(DEVICE), sk.PseudoLabelMemory(900, device=DEVICE)
        cache, index = sk.build_similarity_cache(memory), batch_of(900, 32).to(DEVICE)
        for step in range(3):
            live = clustered_features(32, 64, seed=step).to(DEVICE).requires_grad_()
            loss, labels = function(live, index + step % 2, memory, cache, bits.row_bits, bits.column_bits)
            loss.backward()
        results.append((loss.detach(), labels, live.grad, bits.row_bits, bits.column_bits))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@on_gpu_only
def test_the_cache_stays_exact_over_many_updates():
    memory = normalize(torch.randn(2000, 128, generator=torch.Generator().manual_seed(0)), dim=1).to(DEVICE)
    cache = sk.build_similarity_cache(memory)
    blocks = sk.mark_cache_blocks(cache, 0.2)
    for step in range(1500):
        index = batch_of(2000, 64, step).to(DEVICE)
        live = normalize(memory[index] + 0.5 * clustered_features(64, 128, seed=step).to(DEVICE), dim=1)
        sk.update_memory_(memory, index, live, 0.97 * step / 1500, cache=cache, blocks=blocks)
    exact = memory.double() @ memory.double().t()
    assert (cache - exact).abs().max() < 3e-6
    assert not (sk.mark_cache_blocks(cache, 0.2).bits & ~blocks.bits).any()


def test_goldens(golden):
    memory, index, n = golden["memory"].to(DEVICE), golden["index"].to(DEVICE), golden["memory"].shape[0]
    if not REAL and n > 300:
        pytest.skip("too large to emulate")
    labels = sk.mplp(memory, index, float(golden["threshold"]), cache=sk.build_similarity_cache(memory))
    assert torch.equal(sk.unpack_labels(labels, n).cpu(), golden["multilabel"])
    streamed = sk.mplp(memory, index, float(golden["threshold"]))
    assert torch.equal(streamed, labels)
    features = golden["features"].to(DEVICE).requires_grad_()
    loss = sk.fused_mutual_label_loss(features, memory, [labels], [1.0])
    loss.backward()
    assert_close(loss.detach(), golden["mmcl_loss"], 1e-5)
    assert_close(features.grad, golden["mmcl_grad_features"], 1e-5)


@on_gpu_only
def test_a_captured_iteration_survives_epochs():
    """Captured once, replayed over three epochs of what a training loop calls; its twin runs eagerly."""
    n, d, batch = 700, 64, 32
    eager, captured = (new_head(n, d, cache=True) for _ in range(2))
    index, live = batch_of(n, batch).to(DEVICE), clustered_features(batch, d, seed=1).to(DEVICE)

    def iteration(head):
        loss = head(live, index)
        head.update_(index, live)
        return loss

    state = {name: value.clone() for name, value in captured.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # tunes and compiles what is compiled on first use
        for _ in range(2):
            iteration(captured)
    torch.cuda.current_stream().wait_stream(stream)
    captured.load_state_dict(state)
    captured.memory.rebuild_cache_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = iteration(captured).detach()
    places = {name: buffer.data_ptr() for name, buffer in captured.named_buffers()}
    for epoch in range(3):
        for head in (eager, captured):
            head.momentum = 0.1 * epoch
            head.warmup = True
            head.update_(index, live)
            head.warmup = False
            head.memory.rebuild_cache_()
            head.memory.features.data[epoch] = clustered_features(1, d, seed=epoch)[0].to(DEVICE)
            head.mark_written_()
        for step in range(3):
            index.copy_(batch_of(n, batch, 3 * epoch + step))
            live.copy_(clustered_features(batch, d, seed=3 * epoch + step + 5))
            graph.replay()
            assert_close(loss, iteration(eager).detach().cpu(), 1e-6)
        # The replay wrote S, M and P, which no Python code saw.
        assert torch.equal(captured.pseudo_labels.row_bits, eager.pseudo_labels.row_bits)
        assert torch.equal(captured.pseudo_labels.column_bits, eager.pseudo_labels.column_bits)
        assert (
            captured.memory.cache - captured.memory.features @ captured.memory.features.t()
        ).abs().max() < 3e-6
    assert {name: buffer.data_ptr() for name, buffer in captured.named_buffers()} == places
