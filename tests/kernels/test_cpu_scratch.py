"""Scratch memory of the compiled CPU library: at most 64 MB beside arguments and results, whatever the labels are.

Each call runs in a process of its own that gives freed memory back, and the peak of its resident memory is read.
"""

import multiprocessing
import multiprocessing.pool
from collections.abc import Callable, Iterator

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels.memory_size import free_memory
from snnet_kernels.testing import clustered_features
from tests.kernels.inputs import needs_cpu_library
from tests.kernels.list_checks import symmetric_lists
from tests.memory import needs_freed_memory, needs_proc, peak_of, resident_bytes

pytestmark = [
    needs_cpu_library,
    needs_proc,
    needs_freed_memory,
]
MOST = 64e6
N, B = 12936, 64  # Market-1501
WEIGHTS = [1.0, 0.8, 0.6]


@pytest.fixture(scope="module")
def process() -> Iterator[multiprocessing.pool.Pool]:
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield pool


def peaks_with_lists() -> dict[str, int]:
    memory = clustered_features(N, 64, identities=751)
    lists = symmetric_lists(memory, 64)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(N, (B,), generator=generator)
    index[B // 2 :] = index[: B // 2]  # each index twice
    features = clustered_features(B, 64, seed=1)
    labels = sk.mplp(memory, index, lists=lists)
    sk.nearest_neighbors(memory, index)  # and what torch keeps for its products is there before
    similarity = features @ memory.t()
    momentum = torch.tensor(0.7)
    return {
        "lists": peak_of(lambda: sk.neighbor_lists(memory, 32)),
        "mplp": peak_of(lambda: sk.mplp(memory, index, lists=lists)),
        "mplp, all are candidates": peak_of(lambda: sk.mplp(memory, index, -2.0, lists=lists)),
        "nearest": peak_of(lambda: sk.nearest_neighbors(memory, index, lists=lists)),
        "nearest 100": peak_of(lambda: sk.nearest_neighbors(memory, index, 100, lists=lists)),
        "update": peak_of(
            lambda: sk.update_memory_(memory, index, features, momentum, lists=lists, similarity=similarity)
        ),
        "update, s absent": peak_of(
            lambda: sk.update_memory_(memory, index, features, momentum, lists=lists)
        ),
        # The rows nearly vanish: all of them are computed afresh.
        "update, opposite": peak_of(
            lambda: sk.update_memory_(memory, index, -memory[index], momentum, lists=lists)
        ),
        "loss": peak_of(lambda: sk.mutual_label_loss(similarity, [labels] * 3, WEIGHTS)),
    }


def peaks_of_losses() -> dict[str, int]:
    """A batch so large that one entry of the loss for each of its similarities would not fit."""
    batch = 512
    memory, features = clustered_features(N, 16, identities=751), clustered_features(batch, 16, seed=1)
    index = torch.arange(batch)
    labels = [sk.pack_labels(torch.rand(batch, N) < density) for density in (0.001, 0.5, 1.0)]
    similarity = features @ memory.t()
    sk.mplp(memory, index[:B])

    def fused(**options: object) -> Callable[[], object]:
        return lambda: sk.fused_mutual_label_loss(
            features, memory, labels, WEIGHTS, similarity=similarity, **options
        )

    few = [label[:B].contiguous() for label in labels]
    return {
        "mmcl": peak_of(fused()),
        "mmcl, every negative": peak_of(fused(hard_negative_ratio=1.0)),
        "l2": peak_of(fused(kind="l2")),
        "from features": peak_of(
            lambda: sk.fused_mutual_label_loss(features[:B], memory, few, WEIGHTS, hard_negative_ratio=1.0)
        ),
    }


def peaks_of_streaming() -> dict[str, int]:
    def angles(*groups: tuple[float, int]) -> torch.Tensor:
        degrees = torch.cat([torch.full((count,), float(angle)) for angle, count in groups])
        return torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)

    # The images at 45 degrees are candidates of those at 0, and those at 80 make all of them inconsistent.
    memory = angles((0, 300), (45, 20_000), (80, 22_000))
    index = torch.arange(B)
    same = angles((0, 160_000))
    sk.mplp(memory[:500].clone(), index)
    labels = []
    peaks = {
        "many candidates": peak_of(lambda: labels.append(sk.mplp(memory, index))),
        "given rows": peak_of(
            lambda: labels.append(sk.mplp(memory, index, query_rows=(memory[:1] @ memory.t()).expand(B, -1)))
        ),
        "all candidates": peak_of(lambda: labels.append(sk.mplp(same, index))),
    }
    for found in labels[:2]:
        flags = sk.unpack_labels(found, len(memory))
        assert flags[:, :300].all() and int(flags.sum()) == 300 * B
    assert sk.unpack_labels(labels[2], len(same)).all()
    return peaks


@pytest.mark.parametrize("measure", [peaks_with_lists, peaks_of_losses, peaks_of_streaming])
def test_scratch_memory(process, measure):
    if free_memory(torch.device("cpu")) < 3e9:
        pytest.skip("needs 3 GB of free memory")
    peaks = process.apply(measure)
    assert {name: peak for name, peak in peaks.items() if not peak <= MOST} == {}
    assert max(peaks.values()) > 0


def kept_after_labels() -> int:
    n = 2_000_000
    alone = (torch.arange(n, dtype=torch.int32)[:, None], torch.ones(n, 1), torch.ones(n, dtype=torch.int32))
    lists = sk.NeighborLists(*alone, torch.full((n,), -1.0))
    memory, index, rows = torch.ones(n, 1), torch.tensor([5]), torch.zeros(1, n)
    rows[0, 5] = 1.0
    sk.mplp(memory[:100], index, query_rows=rows[:, :100])  # what a first call keeps
    before = resident_bytes("VmRSS")
    labels = sk.mplp(memory, index, query_rows=rows, lists=lists)
    assert labels.nonzero().tolist() == [[0, 0]] and labels[0, 0] == 1 << 5
    del labels
    return resident_bytes("VmRSS") - before


def test_labels_leave_no_scratch_behind(process):
    assert process.apply(kept_after_labels) < 4e6  # 8 n bytes are 16 MB


def peak_over_graph() -> float:
    """Peak of a Jaccard graph with hundreds of pairs an image, over the size of the graph."""
    features = clustered_features(3000, 16, identities=1)
    sk.jaccard_graph(features[:500])
    graphs: list[sk.SparseGraph] = []
    peak = peak_of(lambda: graphs.append(sk.jaccard_graph(features, 60, 6, max_distance=1)))
    return peak / (8 * graphs[0].values.numel())


def test_a_jaccard_graph_is_held_twice(process):
    assert 1 < process.apply(peak_over_graph) < 2.3


def large_loss() -> tuple[int, float, float]:
    """Peak, the loss and by how much the gradient is off, of a batch whose s would take 1.09 GiB.

    The first samples, which are so many as go at once, are all the same one, the others another.
    """
    n, first, others = 2**16, 4096, 384
    memory = clustered_features(n, 2, identities=5000)
    labels = torch.zeros(first + others, n // 8, dtype=torch.uint8)
    labels[:, 0] = 255

    def loss_of(features: torch.Tensor) -> torch.Tensor:
        own = [labels[: len(features)]]
        return sk.fused_mutual_label_loss(features, memory, own, [1.0], hard_negative_ratio=1e-3)

    one, other = (memory[row : row + 1].clone().requires_grad_() for row in (0, 1))
    batch = torch.cat([one.detach().expand(first, -1), other.detach().expand(others, -1)]).requires_grad_()
    expected = (first * loss_of(one) + others * loss_of(other)) / len(batch)
    expected.backward()
    losses = []
    peak = peak_of(lambda: losses.append(loss_of(batch)))
    losses[0].backward()
    gradients = torch.cat([(one.grad / first).expand(first, -1), (other.grad / others).expand(others, -1)])
    off = (batch.grad - gradients).abs().max() / gradients.abs().max()
    return peak, losses[0].item() / expected.item(), float(off)


def test_the_loss_holds_a_gibibyte_of_similarities_at_most(process):
    if free_memory(torch.device("cpu")) < 4e9:
        pytest.skip("needs 4 GB of free memory")
    peak, loss, off = process.apply(large_loss)
    assert peak <= 2**30 + MOST
    assert loss == pytest.approx(1, abs=1e-6) and off < 1e-6
