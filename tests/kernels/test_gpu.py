"""Every operation on a GPU against the reference on the CPU: labels and indices to the bit, floats to rounding.

``SNNET_TEST_DEVICE=cpu`` runs it where the CUDA kernels are emulated (see cuda_on_cpu). Tests named ``small`` are
those that also run under compute-sanitizer.
"""

import os

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.backends import gpu, table
from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.ops.neighbor_lists import symmetric_lists
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
    return [tensor if tensor is None else tensor.to(DEVICE, copy=True) for tensor in tensors]


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


def lists_on_device(memory: torch.Tensor, k: int, capacity: int) -> NeighborLists:
    """Symmetric lists of a memory [n, d] that is on the device."""
    n = len(memory)
    nearest = sk.neighbor_lists(memory, min(k, n))
    return NeighborLists(*symmetric_lists(*nearest[:4], min(capacity, n)))


def dense(lists: NeighborLists) -> torch.Tensor:
    """The listed values [n, n], NaN where nothing is listed."""
    row, place = (lists.columns >= 0).nonzero().unbind(1)
    made = torch.full((len(lists.counts),) * 2, torch.nan, device=lists.values.device)
    made[row, lists.columns[row, place].long()] = lists.values[row, place]
    return made


def check_lists(lists: NeighborLists, similarity: torch.Tensor, tolerance: float) -> None:
    """Everything above the floors is listed with its value, from both sides."""
    listed = dense(lists)
    missing = listed.isnan() & (similarity > lists.floors[:, None] + tolerance)
    assert int(missing.sum()) == 0
    assert (listed - similarity).nan_to_num().abs().max() <= tolerance
    assert int((~listed.isnan()).sum()) == int(lists.counts.sum())
    assert torch.equal(listed.isnan(), listed.t().isnan())
    assert torch.equal(listed.nan_to_num(), listed.t().nan_to_num())


@pytest.mark.parametrize("form", ["lists", "rows and lists", "streaming", "rows"])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_labels_small(n, d, form):
    if not REAL and n > 100 and "lists" not in form:
        pytest.skip("too large to interpret")
    memory = exact_rows(n, d) if d < 64 else (clustered_features(n, d) * 64).round() / 64
    index = batch_of(n, 13)
    similarity = memory @ memory.t()
    rows = exact_rows(13, d, 1) @ memory.t() if "rows" in form else None
    given, m, i = on_device(rows, memory, index)
    lists = lists_on_device(m, 20, 30) if "lists" in form else None
    decisions = [(0.5625, 3), (0.0, 10), (-99.0, 2)]
    if not REAL and "lists" not in form:
        decisions = decisions[:2]  # triton_label_cases.py interprets all
    for threshold, min_rank in decisions:
        if lists is not None and n > (3000 if REAL else 80) and threshold <= 0:
            continue  # every row is multiplied
        expected = reference.mplp(memory, index, threshold, min_rank, cache=similarity, query_rows=rows)
        labels = sk.mplp(m, i, threshold, min_rank, lists=lists, query_rows=given)
        assert torch.equal(labels.cpu(), expected)
    for k in (1, 4, n + 2) if REAL or n < 100 else (1, 4):
        wanted, values = reference.nearest_neighbors(memory, index, k, cache=similarity, query_rows=rows)
        neighbors, found = sk.nearest_neighbors(m, i, k, lists=lists, query_rows=given)
        assert torch.equal(neighbors.cpu(), wanted)
        assert torch.equal(found.cpu(), values)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_lists_small(n, d, monkeypatch):
    """Built from tiles, and made symmetric, they are those of the reference."""
    if not REAL and n > 100:
        pytest.skip("too large to emulate")
    if not REAL:
        monkeypatch.setattr(gpu, "TILE", 40)
    memory = exact_rows(n, d)
    for k, capacity, floor in ((7, 10, None), (n, n, 0.5)):
        if k > 2049:
            continue
        ours = sk.neighbor_lists(memory.to(DEVICE), k, floor=floor)
        theirs = reference.neighbor_lists(memory, k, -torch.inf if floor is None else floor)
        for part, expected in zip(ours[:4], theirs[:4], strict=True):
            assert torch.equal(part.cpu(), expected)
        ours = NeighborLists(*symmetric_lists(*ours[:4], min(capacity, n)))
        assert ours.mirrors.shape == (n, 0)
        theirs = reference.symmetric_lists(theirs, min(capacity, n))
        assert torch.equal(dense(ours).cpu().nan_to_num(-99), dense(theirs).nan_to_num(-99))
        assert torch.equal(ours.floors.cpu(), theirs.floors)


@pytest.mark.parametrize("lists", [True, False])
def test_strided_arguments_small(lists):
    n, d, batch = 70, 12, 9
    memory, wide = exact_rows(n, d).to(DEVICE), exact_rows(batch, 2 * d, 1).to(DEVICE)
    index, rows = batch_of(n, 2 * batch).to(DEVICE)[::2], (memory @ wide[:, ::2].t()).t()
    tables = lists_on_device(memory, 5, 10) if lists else None
    for strided, plain in (
        (sk.memory_similarity(wide[:, ::2], memory), sk.memory_similarity(wide[:, ::2].clone(), memory)),
        *(
            (call(index, rows), call(index.clone(), rows.contiguous()))
            for call in (
                lambda i, r: sk.mplp(memory, i, 0.5625, lists=tables, query_rows=r),
                lambda i, r: sk.nearest_neighbors(memory, i, 3, lists=tables, query_rows=r)[0],
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
    features[3] = -memory[0]  # the blend is short, or zero: what it lists needs products of its own
    index = torch.cat([batch_of(n, 3), torch.zeros(2).long(), batch_of(n, 7, 1)])
    exact = memory.double()
    reference.update_memory_(exact, index, features.double(), momentum)
    m, i, f = on_device(memory, index, features)
    lists = lists_on_device(m, 20, 40)
    sk.update_memory_(m, i, f, momentum, lists=lists)
    assert_close(m, exact, 1e-6 if momentum < 1 else 2e-6)
    check_lists(lists, m @ m.t(), 3e-6)
    alone = memory.to(DEVICE, copy=True)
    sk.update_memory_(alone, i, f, momentum)
    assert torch.equal(alone, m)


@pytest.mark.parametrize(("k", "capacity"), [(4, 4), (8, 16), (300, 300)])
def test_list_updates_small(k, capacity):
    """Several updates of batches without repeats: the lists of the reference, also where rows are full."""
    n, d = 300 if REAL else 60, 16
    memory = clustered_features(n, d)
    m = memory.to(DEVICE, copy=True)
    lists = lists_on_device(m, k, capacity)
    theirs = reference.symmetric_lists(reference.neighbor_lists(memory, min(k, n)), min(capacity, n))
    for step in range(5):
        index = torch.randperm(n, generator=torch.Generator().manual_seed(step))[:20]
        live = normalize(memory[index] + 0.3 * clustered_features(20, d, seed=step + 1), dim=1)
        live[0] = -memory[index[0]]
        reference.update_memory_lists_(memory, index, live, 0.3, theirs)
        sk.update_memory_(m, *on_device(index, live), 0.3, lists=lists)
        assert_close(m, memory)
        check_lists(lists, m @ m.t(), 3e-6)
        ours, other = dense(lists).cpu(), dense(theirs)
        gap = (torch.where(ours.isnan(), other, ours) - theirs.floors[:, None]).abs()
        differ = (ours.isnan() != other.isnan()) & (torch.minimum(gap, gap.t()) > 3e-6)
        assert int(differ.sum()) == 0  # but for what is a floor's but for rounding
        assert (lists.floors.cpu() - theirs.floors).nan_to_num().abs().max() < 3e-6


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
        for first, second in zip(run_head(head, 2, n, d), run_head(again, 2, n, d), strict=True):
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
    monkeypatch.setattr(gpu, "HELD_SIMILARITIES", 0)  # the loss without similarities is the streaming one
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

        state = {name: value.clone() for name, value in captured.state_dict().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # tunes and compiles what is compiled on first use
            for _ in range(2):
                iteration(captured)
        torch.cuda.current_stream().wait_stream(stream)
        captured.load_state_dict(state)
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
def test_flags_around_the_operations_change_nothing():
    memory, index = clustered_features(3000, 256).to(DEVICE), batch_of(3000, 64).to(DEVICE)
    features = clustered_features(64, 256, seed=1).to(DEVICE)
    before = [
        sk.memory_similarity(features, memory),
        sk.mplp(memory, index),
        sk.neighbor_lists(memory, 20).values,
    ]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            after = [
                sk.memory_similarity(features, memory),
                sk.mplp(memory, index),
                sk.neighbor_lists(memory, 20).values,
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
@pytest.mark.parametrize("capacity", [20, 200])
def test_lists_stay_complete_over_many_updates(capacity):
    memory = normalize(torch.randn(2000, 128, generator=torch.Generator().manual_seed(0)), dim=1).to(DEVICE)
    lists = lists_on_device(memory, capacity // 2, capacity)
    for step in range(1500):
        index = batch_of(2000, 64, step).to(DEVICE)
        live = normalize(memory[index] + 0.5 * clustered_features(64, 128, seed=step).to(DEVICE), dim=1)
        sk.update_memory_(memory, index, live, 0.97 * step / 1500, lists=lists)
    exact = memory.double() @ memory.double().t()
    check_lists(lists, exact, 3e-6)


def test_goldens(golden):
    memory, index, n = golden["memory"].to(DEVICE), golden["index"].to(DEVICE), golden["memory"].shape[0]
    if not REAL and n > 300:
        pytest.skip("too large to emulate")
    lists = lists_on_device(memory, 20, 40)
    labels = sk.mplp(memory, index, float(golden["threshold"]), lists=lists)
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
    eager, captured = (new_head(n, d, neighbors=40) for _ in range(2))
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
