"""Every operation on a GPU against the reference on the CPU: labels and indices to the bit, floats to rounding.

``SNNET_TEST_DEVICE=cpu`` runs it where the CUDA kernels are emulated (see cuda_on_cpu). Tests named ``small`` are
those that also run under compute-sanitizer.
"""

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.backends import gpu, servers_on
from snnet_kernels.neighbor_list_layout import NeighborLists
from snnet_kernels.ops.neighbor_lists import lists_and_lowest, symmetric_lists
from snnet_kernels.testing import clustered_features
from tests.kernels.gpu_checks import (
    DEVICE,
    REAL,
    SIZES,
    WEIGHTS,
    assert_close,
    lists_on_device,
    on_device,
    on_gpu_only,
)
from tests.kernels.inputs import batch_of, exact_rows, label_sets
from tests.kernels.list_checks import check_lists, dense, same_lists

pytestmark = pytest.mark.gpu if REAL else []


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
    """With code for the device."""
    assert servers_on(torch.device("cuda"))["nearest_neighbors"] == ("cuda", "triton")


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
        assert torch.equal(lists_and_lowest(memory.to(DEVICE), k)[1].cpu(), (memory @ memory.t()).amin(1))
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
    monkeypatch.setattr("snnet_kernels.ops.memory_update.SIMILARITIES_AT_ONCE", 4 * n)  # 4 rows of 11
    sparse = gpu._SPARSE_UP_TO
    for form in ("given", "features", "parts", "streaming", "similarity"):
        monkeypatch.setattr(gpu, "HELD_SIMILARITIES", 0 if form in ("parts", "streaming") else 2**30)
        monkeypatch.setattr(gpu, "_SPARSE_UP_TO", dict.fromkeys(sparse, 0) if form == "streaming" else sparse)
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


def test_lists_small_follow_float32_in_any_precision():
    """Were they updated from products in tf32, a pair could rise above a floor unseen."""
    memory = clustered_features(60, 16)
    index, live = torch.arange(12), clustered_features(12, 16, seed=1)
    m, i, f, rounded = on_device(memory.clone(), index, live, live @ memory.t() - 5e-4)
    lists = lists_on_device(m, 8, 16)
    sk.set_matmul_precision("tf32")
    try:
        sk.update_memory_(m, i, f, 0.0, lists=lists, similarity=rounded)
    finally:
        sk.set_matmul_precision("ieee")
    check_lists(lists, m @ m.t(), 3e-6)


def test_a_floor_small_that_no_float32_reaches():
    (memory,) = on_device(clustered_features(10, 4))
    assert sk.neighbor_lists(memory, 4, floor=1e300).counts.tolist() == [0] * 10
    assert sk.neighbor_lists(memory, 10, floor=-1e300).counts.tolist() == [10] * 10


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
        same_lists(NeighborLists(*(table.cpu() for table in lists)), theirs, 3e-6)


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
def test_three_tf32_products_of_many_dimensions_are_as_good_as_float32():
    """Also large ones, here up to 0.96: tensor cores cut off, so that one long sum would be 5e-6 too small."""
    memory = clustered_features(5000, 2048)
    noise = normalize(torch.randn(70, 2048, generator=torch.Generator().manual_seed(0)), dim=1)
    features = normalize(memory[:70] + 0.3 * noise, dim=1)
    sk.set_matmul_precision("tf32x3")
    try:
        ours = sk.memory_similarity(*on_device(features, memory))
    finally:
        sk.set_matmul_precision("ieee")
    exact = features.double() @ memory.double().t()
    assert exact.max() > 0.95
    assert (ours.cpu() - exact).abs().max() < 1e-6


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
