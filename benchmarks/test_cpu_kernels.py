"""The compiled CPU kernels at the size of Market-1501 against plain PyTorch, as ratios of medians.

``pytest benchmarks/test_cpu_kernels.py --benchmark-only -s``. Each test first proves the results equal, then
runs all contenders in turn with fresh images each round, so that a slow moment of the machine meets them all;
the ratios are printed and kept as ``extra_info``. Contenders: the compiled operations; the vectorised reference
without and with the similarity cache, each also under ``torch.compile``; the usual loop over samples, run on
some of the batch and scaled. "Bare" is the fastest way to write the product of features and memory.
"""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import backends, reference
from snnet_kernels.testing import clustered_features

N, IDENTITIES, B, MOMENTUM = 12936, 751, 64, 0.3
WEIGHTS = [1.0, 0.8, 0.6]
LOOP_SAMPLES = 4  # of the B; the time is scaled by B / LOOP_SAMPLES
ROUNDS = 15

pytestmark = pytest.mark.skipif(
    backends.serving_backend("mplp", "cpu") != "cpu", reason="the compiled CPU library is not loaded"
)
ALPHA = torch.tensor(MOMENTUM)


@pytest.fixture(scope="module", params=[2048, 512], ids=lambda d: f"d{d}")
def case(request) -> Iterator[SimpleNamespace]:
    memory = clustered_features(N, request.param, identities=IDENTITIES)
    cache = sk.build_similarity_cache(memory)
    bits = sk.PseudoLabelMemory(N)
    candidates = rejected = 0
    for start in range(0, N, 1024):
        index = torch.arange(start, min(start + 1024, N))
        labels = sk.mplp(memory, index, cache=cache)
        above = cache[index] > 0.6
        candidates += int(above.sum())
        rejected += int((above & ~sk.unpack_labels(labels, N)).sum())
        bits.write_(index, labels)
    assert 5 < candidates / N < 20 and rejected / candidates > 0.2
    yield SimpleNamespace(memory=memory, cache=cache, bits=bits, d=request.param)


def batches(case: SimpleNamespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Index [B] and live features [B, d], other images each time."""
    generator = torch.Generator().manual_seed(0)
    while True:
        index = torch.randperm(N, generator=generator)[:B]
        noise = normalize(torch.randn(B, case.d, generator=generator), dim=1)
        yield index, normalize(case.memory[index] + 0.3 * noise, dim=1)


def race(
    benchmark, case: SimpleNamespace, contenders: dict[str, Callable], scale: dict[str, float] | None = None
) -> dict[str, float]:
    """Median seconds of each contender, called with (index, features); the first is the one benchmarked."""
    scale = scale or {}
    draw, seconds = batches(case), {name: [] for name in contenders}
    for name, contender in contenders.items():
        contender(*next(draw))
        if name.startswith("torch.compile"):
            contender(*next(draw))
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            if scale.get(name, 1) > 1 and len(seconds[name]) >= 3:
                continue
            batch = next(draw)
            start = time.perf_counter()
            contender(*batch)
            seconds[name].append((time.perf_counter() - start) * scale.get(name, 1))
    first = next(iter(contenders))
    benchmark.pedantic(contenders[first], setup=lambda: (next(draw), {}), rounds=ROUNDS)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{benchmark.name}, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        benchmark.extra_info[name] = median / medians[first]
        print(f"  {name:<36} {1e3 * median:9.2f} ms   x {median / medians[first]:.2f}")
    return medians


def compiled_by_torch(function: Callable) -> Callable:
    torch._dynamo.reset()
    torch._logging.set_logs(dynamo=logging.ERROR)  # the reference breaks the graph where it reads a count
    return torch.compile(function)


def bare_product(memory: Tensor) -> Callable[[Tensor], Tensor]:
    """The fastest of three ways to write f Mᵀ."""
    features, out = memory[:B].clone(), torch.empty(B, memory.shape[0])
    ways = [
        lambda f: f @ memory.t(),
        lambda f: (memory @ f.t()).t().contiguous(),
        lambda f: torch.mm(f, memory.t(), out=out),
    ]

    def seconds(way: Callable) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            way(features)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    return min(ways, key=seconds)


def test_labels_and_update(case, benchmark):
    """Main label, neighbour, memory and cache update, with s at hand as in an iteration."""
    memory, cache = case.memory, case.cache
    uncached = memory.clone()
    index, features = next(batches(case))
    similarity = features @ memory.t()
    assert torch.equal(sk.mplp(memory, index, cache=cache), reference.mplp(memory, index, cache=cache))
    assert torch.equal(
        sk.nearest_neighbors(memory, index, cache=cache)[0],
        reference.nearest_neighbors(memory, index, cache=cache)[0],
    )
    by_loop = sk.unpack_labels(reference.loop.mplp(memory, index[:LOOP_SAMPLES]), N)
    ours = sk.unpack_labels(sk.mplp(memory, index[:LOOP_SAMPLES], cache=cache), N)
    assert (by_loop != ours).sum() <= 2  # products of other shapes round differently

    def compiled(index: Tensor, features: Tensor) -> None:
        sk.mplp(memory, index, cache=cache)
        sk.nearest_neighbors(memory, index, cache=cache)
        sk.update_memory_(memory, index, features, ALPHA, cache=cache, similarity=similarity)

    def vectorised_cache(index: Tensor, features: Tensor) -> None:
        reference.mplp(memory, index, cache=cache)
        reference.nearest_neighbors(memory, index, cache=cache)
        reference.update_memory_(memory, index, features, ALPHA, cache=cache, similarity=similarity)

    def vectorised(index: Tensor, features: Tensor) -> None:
        reference.mplp(uncached, index)
        reference.nearest_neighbors(uncached, index)
        reference.update_memory_(uncached, index, features, ALPHA)

    def loop(index: Tensor, features: Tensor) -> None:
        few = index[:LOOP_SAMPLES]
        reference.loop.mplp(uncached, few)
        reference.loop.nearest_neighbors(uncached, few)
        reference.loop.update_memory_(uncached, few, features[:LOOP_SAMPLES], ALPHA)

    # s of one batch serves all: its values do not change the time.
    before = memory.clone()
    contenders = {
        "compiled": compiled,
        "vectorised with the cache": vectorised_cache,
        "vectorised": vectorised,
        "loop": loop,
        "torch.compile with the cache": compiled_by_torch(vectorised_cache),
        "torch.compile": compiled_by_torch(vectorised),
    }
    try:
        race(benchmark, case, contenders, {"loop": B / LOOP_SAMPLES})
    finally:
        memory.copy_(before)
        torch.mm(memory, memory.t(), out=cache)


@pytest.fixture(scope="module")
def label_sets(case) -> list[Tensor]:
    index, _ = next(batches(case))
    neighbor = sk.nearest_neighbors(case.memory, index, cache=case.cache)[0][:, 0]
    return [
        sk.mplp(case.memory, index, cache=case.cache),
        case.bits.columns(index),
        case.bits.rows(neighbor),
    ]


def gradient(loss: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.clone().requires_grad_()
    value = loss(features)
    value.backward()
    return value.detach(), features.grad


def compare_losses(case, benchmark, ours: Callable, vectorised: Callable, autograd: Callable) -> None:
    _, features = next(batches(case))
    value, grad = gradient(ours, features)
    for other in (vectorised, autograd):
        expected, expected_grad = gradient(other, features)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (grad - expected_grad).abs().max() < 1e-5 * expected_grad.abs().max()
    bare = bare_product(case.memory)
    race(
        benchmark,
        case,
        {
            "compiled": lambda index, features: gradient(ours, features),
            "vectorised": lambda index, features: gradient(vectorised, features),
            "vectorised, by autograd": lambda index, features: gradient(autograd, features),
            "bare product": lambda index, features: bare(features),
        },
    )


class _ReferenceLoss(torch.autograd.Function):
    """The reference with the gradient that its forward pass gives."""

    @staticmethod
    def forward(ctx, features, memory, similarity, labels):
        loss, grad = reference.fused_mutual_label_loss_with_grad(
            features, memory, similarity, labels, WEIGHTS, "mmcl", 5.0, 0.01
        )
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None, None, None


def test_loss_from_features(case, label_sets, benchmark):
    compare_losses(
        case,
        benchmark,
        lambda f: sk.fused_mutual_label_loss(f, case.memory, label_sets, WEIGHTS),
        lambda f: _ReferenceLoss.apply(f, case.memory, None, label_sets),
        lambda f: reference.mutual_label_loss(f @ case.memory.t(), label_sets, WEIGHTS),
    )


class _GivenSimilarity(torch.autograd.Function):
    """s as a function of the features whose value is at hand: only its backward product is made."""

    @staticmethod
    def forward(ctx, features, memory, similarity):
        ctx.save_for_backward(memory)
        return similarity.view_as(similarity)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0], None, None


def test_loss_with_similarity_at_hand(case, label_sets, benchmark):
    _, features = next(batches(case))
    s = features @ case.memory.t()
    compare_losses(
        case,
        benchmark,
        lambda f: sk.fused_mutual_label_loss(f, case.memory, label_sets, WEIGHTS, similarity=s),
        lambda f: _ReferenceLoss.apply(f, case.memory, s, label_sets),
        lambda f: reference.mutual_label_loss(_GivenSimilarity.apply(f, case.memory, s), label_sets, WEIGHTS),
    )


def test_iteration(case, benchmark):
    """Steps 1 to 6 without the backbone, over the bare product."""
    head = sk.SNNetHead(N, case.d, cache=True)
    head.initialize_(case.memory)
    head.pseudo_labels.row_bits.copy_(case.bits.row_bits)
    head.pseudo_labels.column_bits.copy_(case.bits.column_bits)
    head.momentum = MOMENTUM
    bare = bare_product(head.memory.features)

    def iteration(index: Tensor, features: Tensor) -> Tensor:
        features = features.requires_grad_()
        loss = head(features, index)
        loss.backward()
        head.update_(index, features.detach())
        return loss

    index, features = next(batches(case))
    rows = case.cache[index]
    sets = [
        reference.mplp(case.memory, index, cache=case.cache),
        case.bits.columns(index),
        case.bits.rows(reference.nearest_neighbors(case.memory, index, query_rows=rows)[0][:, 0]),
    ]
    expected = reference.mutual_label_loss(features @ case.memory.t(), sets, WEIGHTS)
    assert iteration(index, features.clone()).item() == pytest.approx(expected.item(), rel=1e-5)
    race(benchmark, case, {"bare product": lambda index, features: bare(features), "iteration": iteration})


def test_streaming_labels(case, benchmark):
    memory = case.memory
    index, _ = next(batches(case))
    ours = sk.unpack_labels(sk.mplp(memory, index), N)
    expected = sk.unpack_labels(reference.mplp(memory, index), N)
    assert (ours != expected).any(1).sum() <= 1  # products of other shapes round differently
    race(
        benchmark,
        case,
        {
            "compiled, streaming": lambda index, features: sk.mplp(memory, index),
            "vectorised": lambda index, features: reference.mplp(memory, index),
            "torch.compile": compiled_by_torch(lambda index, features: reference.mplp(memory, index)),
        },
    )


def test_column_inquiry(case, benchmark):
    dense = case.bits.to_dense()
    index, _ = next(batches(case))
    assert torch.equal(sk.unpack_labels(case.bits.columns(index), N), dense[:, index].t())
    race(
        benchmark,
        case,
        {
            "compiled": lambda index, features: case.bits.columns(index),
            "bool matrix P[:, index]": lambda index, features: dense[:, index],
        },
    )


def test_growth_of_streaming_labels(benchmark):
    """n 12,936 to 100,000 with clusters of the same sizes: the time a row and image of the memory."""
    cost = {}
    for n in (12936, 32621, 100_000):
        memory = clustered_features(n, 256, identities=round(n * IDENTITIES / N))
        generator, taken = torch.Generator().manual_seed(0), []
        for _ in range(8):
            index = torch.randperm(n, generator=generator)[:B]
            start = time.perf_counter()
            sk.mplp(memory, index)
            taken.append(time.perf_counter() - start)
        cost[n] = statistics.median(taken[1:])
    benchmark.pedantic(lambda: sk.mplp(memory, index), rounds=1)
    print(f"\n{benchmark.name}, {torch.get_num_threads()} threads")
    for n, seconds in cost.items():
        linear = seconds / n / (cost[12936] / 12936)
        benchmark.extra_info[str(n)] = linear
        print(f"  n {n:>7} {1e3 * seconds:9.2f} ms   x {linear:.2f} of linear growth")


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def peak_of_streaming(d: int) -> int:
    memory = clustered_features(N, d, identities=IDENTITIES)
    index = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:B]
    sk.mplp(memory[:200].clone(), index % 200)  # what torch keeps for its products is there before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from the present size
    before = resident_bytes("VmRSS")
    sk.mplp(memory, index)
    return resident_bytes("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("d", [2048, 512])
def test_scratch_of_streaming_labels(d, monkeypatch, benchmark):
    # In a process of its own that gives freed memory back: else what is taken could be what was left over.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = benchmark.pedantic(lambda: pool.apply(peak_of_streaming, (d,)), rounds=1)
    print(f"\n{benchmark.name}: {peak / 1e6:.1f} MB beside the memory")
    assert 0 < peak <= 64e6
