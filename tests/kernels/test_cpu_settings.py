"""Results of the CPU library do not depend on threads, instruction set or the precision settings of torch."""

import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import backends, ops, reference
from snnet_kernels.testing import clustered_features
from tests.forks import python
from tests.kernels.inputs import batch_of, exact_rows, needs_cpu_library

pytestmark = needs_cpu_library
OPS = torch.ops.snnet


def everything(d: int = 40, n: int = 1500, batch: int = 70) -> list[torch.Tensor]:
    """A result of every operation that computes something of its own."""
    memory = clustered_features(n, d)
    index = batch_of(n, batch, 3)
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


def memory_and_features(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    return clustered_features(5000, d), clustered_features(70, d, seed=5)


def batch_results(memory: torch.Tensor, features: torch.Tensor) -> list[torch.Tensor]:
    """What makes the product of a batch and the memory itself."""
    batch, n = len(features), len(memory)
    labels = [reference.identity_labels(torch.arange(k, k + batch), n) for k in range(3)]
    loss = OPS.fused_mutual_label_loss.default(
        features, memory, None, labels, [1.0, 0.8, 0.6], "mmcl", 5.0, 0.01
    )
    return [sk.memory_similarity(features, memory), *loss]


def streaming_results() -> list[torch.Tensor]:
    memory, index = exact_rows(900, 8, 0), batch_of(900, 90, 1)
    made, lowest = ops.lists_and_lowest(memory, 30)
    return [sk.mplp(memory, index, 0.5), *sk.nearest_neighbors(memory, index, 6), *made[:4], lowest]


@pytest.fixture
def restored() -> Iterator[None]:
    threads, instruction_set = torch.get_num_threads(), backends.instruction_set()
    yield
    torch.set_num_threads(threads)
    backends.select_instruction_set(instruction_set)


def test_results_do_not_depend_on_the_number_of_threads(restored):
    by_threads = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        made = batch_results(*memory_and_features(40))
        by_threads.append([*everything(), *streaming_results(), *made])
    for other in by_threads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(by_threads[0], other, strict=True))


def with_each_instruction_set(make: Callable[[], Any]) -> dict[str, Any]:
    found = {}
    for name in backends.INSTRUCTION_SETS:
        try:
            backends.select_instruction_set(name)
        except ValueError:
            continue  # not on this processor
        assert backends.instruction_set() == name
        found[name] = make()
    return found


def test_results_do_not_depend_on_the_instruction_set(restored):
    """But for products of the baseline of x86, which has no fused multiply-adds."""
    torch.set_num_threads(1)
    exact = with_each_instruction_set(streaming_results)
    fused = with_each_instruction_set(lambda: [*everything(), *batch_results(*memory_and_features(40))])
    if platform.machine() in ("x86_64", "AMD64"):
        fused.pop("baseline")
    for results in (exact, fused):
        first = next(iter(results.values()))
        for result in results.values():
            assert all(torch.equal(a, b) for a, b in zip(first, result, strict=True))


# A product whose parts are made for one set and multiplied by another reads and writes past their ends.
MULTIPLY_WHILE_SETS_CHANGE = """
import itertools, threading, torch
from snnet_kernels import backends, ops
sets = []
for name in backends.INSTRUCTION_SETS:
    try:
        backends.select_instruction_set(name)
        sets.append(name)
    except ValueError:
        pass  # not on this processor
rows, memory, ended = torch.randn(64, 512), torch.randn(3000, 512), threading.Event()

def change_sets():
    for name in itertools.cycle(sets):
        backends.select_instruction_set(name)
        if ended.is_set():
            return

changes = threading.Thread(target=change_sets)
changes.start()
try:
    for _ in range(30):
        similarity = ops.memory_similarity(rows, memory)
        assert torch.allclose(similarity, rows @ memory.t(), atol=1e-3)
        back = torch.ops.snnet.memory_similarity_backward.default(similarity, memory)
        assert torch.allclose(back, similarity @ memory, rtol=1e-3, atol=1)
finally:
    ended.set()
    changes.join()
print(len(sets))
"""


def test_another_thread_may_select_an_instruction_set_during_a_product():
    answer = python("-c", MULTIPLY_WHILE_SETS_CHANGE, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) >= 1


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


def test_similarities_of_hostile_rows(restored):
    """Each within the bound of its chains; with the same bits wherever multiply-adds are fused."""
    features, memory = hostile_rows(67, 300, 1), hostile_rows(203, 300, 2)
    found = with_each_instruction_set(lambda: sk.memory_similarity(features, memory))
    whole = features.double() @ memory.double().t()
    bound = (128 + 300 / 128) * 2**-24 * (features.abs().double() @ memory.abs().double().t())
    fits = bound < 1e30
    for similarity in found.values():
        assert bool(((similarity - whole).abs() <= 2 * bound + 1e-42)[fits].all()) and fits.sum() > 1000
        assert similarity.isnan().any() and similarity.isinf().any()
    if {"avx2", "avx512"} <= found.keys():
        one, other = found["avx2"], found["avx512"]
        same = one.view(torch.int32) == other.view(torch.int32)
        assert bool((same | (one.isnan() & other.isnan())).all())


def test_similarities_are_exact_at_many_dimensions():
    """Roundings of equal parts all go one way: the hardest case."""
    generator = torch.Generator().manual_seed(4)
    for rows in (
        torch.randint(0, 2, (60, 3000), generator=generator) * 2.0 - 1,
        1 + torch.rand(60, 2048, generator=generator),
    ):
        rows = normalize(rows, dim=1)
        exact = rows.double() @ rows.double().t()
        assert (sk.memory_similarity(rows, rows) - exact).abs().max() < 1.5e-6


def test_products_of_weights_and_rows():
    """The gradient of a dense similarity."""
    for batch, n, d in ((1, 1, 1), (3, 700, 5), (97, 513, 130), (200, 40, 65), (2, 0, 3)):
        generator = torch.Generator().manual_seed(batch)
        memory = torch.randn(n, d, generator=generator)
        grad = torch.randn(batch, n, generator=generator)
        found = OPS.memory_similarity_backward.default(grad, memory)
        torch.testing.assert_close(found, (grad.double() @ memory.double()).float(), atol=1e-4, rtol=1e-5)
