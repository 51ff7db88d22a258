"""Results of the CPU library do not depend on threads, instruction set or the precision settings of torch."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import backends, reference
from snnet_kernels.testing import clustered_features
from tests.kernels.cpu_inputs import exact_rows, indices
from tests.kernels.list_checks import symmetric_lists

pytestmark = pytest.mark.skipif(
    "cpu" not in backends.servers("mplp", "cpu"), reason="the compiled CPU library is not loaded"
)
OPS = torch.ops.snnet


def everything(d: int = 40, n: int = 1500, batch: int = 70) -> list[torch.Tensor]:
    """A result of every operation that computes something of its own."""
    memory = clustered_features(n, d)
    index = indices(n, batch, 3)
    features = normalize(memory[index] + 0.1 * clustered_features(batch, d, seed=5), dim=1)
    similarity = sk.memory_similarity(features, memory)
    lists = sk.NeighborLists(*OPS.symmetric_lists(*sk.neighbor_lists(memory, 60)[:4], 90))
    labels = sk.mplp(memory, index, lists=lists)
    results = [labels, sk.mplp(memory, index, query_rows=similarity, lists=lists)]
    results += sk.nearest_neighbors(memory, index, 1, lists=lists)
    results += sk.nearest_neighbors(memory, index, 9, lists=lists)
    sets = [labels, labels.roll(1, 0), labels.roll(2, 0)]
    for kind in ("mmcl", "l2"):
        results += OPS.mutual_label_loss.default(similarity, sets, [1.0, 0.8, 0.6], kind, 5.0, 0.01)
    results += OPS.fused_mutual_label_loss.default(
        features, memory, similarity, sets, [1.0, 0.8, 0.6], "mmcl", 5.0, 0.01
    )
    bits = sk.PseudoLabelMemory(n)
    bits.write_(index, labels)
    results += [bits.row_bits, bits.column_bits, bits.columns(index), bits.to_dense()]
    sk.update_memory_(memory, index, features, 0.3, lists=lists, similarity=similarity)
    return [*results, memory, *lists]


def batch_results(memory: torch.Tensor, features: torch.Tensor) -> list[torch.Tensor]:
    """What makes the product of a batch and the memory itself."""
    batch, n = len(features), len(memory)
    labels = [reference.identity_labels(torch.arange(k, k + batch), n) for k in range(3)]
    loss = OPS.fused_mutual_label_loss.default(
        features, memory, None, labels, [1.0, 0.8, 0.6], "mmcl", 5.0, 0.01
    )
    return [sk.memory_similarity(features, memory), *loss]


def streaming_results() -> list[torch.Tensor]:
    memory, index = exact_rows(900, 8, 0), indices(900, 90, 1)
    made = sk.neighbor_lists(memory, 30)
    return [sk.mplp(memory, index, 0.5), *sk.nearest_neighbors(memory, index, 6), *made[:4]]


@pytest.fixture
def restored() -> Iterator[None]:
    threads, instruction_set = torch.get_num_threads(), backends.instruction_set()
    yield
    torch.set_num_threads(threads)
    backends.select_instruction_set(instruction_set)


def test_results_do_not_depend_on_the_number_of_threads(restored):
    by_threads = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made = batch_results(clustered_features(5000, 40), clustered_features(70, 40, seed=5))
        by_threads.append([*everything(), *streaming_results(), *made])
    for other in by_threads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(by_threads[0], other, strict=True))


def test_results_do_not_depend_on_the_instruction_set(restored):
    torch.set_num_threads(1)
    results = {}
    for name in backends.INSTRUCTION_SETS:
        try:
            backends.select_instruction_set(name)
        except ValueError:
            continue  # not on this processor
        assert backends.instruction_set() == name
        results[name] = everything() + streaming_results()
    for result in results.values():
        assert all(torch.equal(a, b) for a, b in zip(results["baseline"], result, strict=True))


def hostile_rows(count: int, d: int, seed: int) -> torch.Tensor:
    """Sums that round at every step: halves of a last place, cancellations, denormals, overflows, NaN."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, d, generator=generator) * 2.0 ** torch.randint(
        -40, 40, (count, d), generator=generator
    )
    rows[0::7] = torch.randint(-3, 4, rows[0::7].shape, generator=generator) * 2.0**-12 + 1
    rows[1::7] *= 1e-30
    rows[2::7] = rows[2::7].round() * 2.0**-24 + 2.0 ** torch.randint(0, 24, (1,), generator=generator)
    rows[3, d // 2], rows[4, d // 3], rows[5, d // 2], rows[6] = torch.inf, torch.nan, 3e38, 0.0
    return rows


def test_similarities_have_the_same_bits_on_every_processor(restored):
    """The baseline makes fused multiply-adds of other instructions."""
    features, memory = hostile_rows(67, 300, 1), hostile_rows(203, 300, 2)
    found = {}
    for name in backends.INSTRUCTION_SETS:
        try:
            backends.select_instruction_set(name)
        except ValueError:
            continue
        found[name] = sk.memory_similarity(features, memory)
    baseline = found["baseline"]
    assert baseline.isnan().any() and baseline.isinf().any() and baseline.isfinite().any()
    for similarity in found.values():
        same = similarity.view(torch.int32) == baseline.view(torch.int32)
        assert bool((same | (similarity.isnan() & baseline.isnan())).all())
    whole, summands = (
        features.double() @ memory.double().t(),
        features.abs().double() @ memory.abs().double().t(),
    )
    fits = summands < 1e38
    assert (
        bool(((baseline - whole).abs() <= 300 * 2**-24 * summands + 1e-42)[fits].all()) and fits.sum() > 1000
    )


def test_autocast_and_reduced_precision_do_not_reach_the_products():
    memory, index = clustered_features(400, 32), torch.arange(0, 400, 9)
    features = clustered_features(len(index), 32, seed=2)
    labels = reference.identity_labels(index, 400)

    def run() -> list[torch.Tensor]:
        own = memory.clone()
        lists = symmetric_lists(memory, 60)
        sk.update_memory_(own, index, features, 0.5, lists=lists)
        loss = OPS.fused_mutual_label_loss.default(features, memory, None, [labels], [1.0], "l2", 5.0, 0.01)
        return [own, *lists, *loss, sk.mplp(memory, index), *sk.nearest_neighbors(memory, index, 3)]

    expected = run()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_float32_matmul_precision(before)
