"""The compiled CPU library at its limits: direct calls with bad arguments, large offsets, forced instruction sets."""

import os
import shutil
import subprocess

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels import backends, ops
from snnet_kernels.memory_size import free_memory
from snnet_kernels.testing import clustered_features
from tests.forks import python
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(
    "cpu" not in backends.servers("mplp", "cpu"), reason="the compiled CPU library is not loaded"
)
OPS = torch.ops.snnet
N = 60
MEMORY, INDEX = clustered_features(N, 8), torch.tensor([1, 2])
FEATURES, CACHE = clustered_features(2, 8, seed=1), MEMORY @ MEMORY.t()
LABELS, BITS = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(N, 16, dtype=torch.uint8)
ROWS, MOMENTUM = torch.zeros(2, N), torch.tensor(0.5)
LOSS = ([LABELS], [1.0], "mmcl", 5.0, 0.01)


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("mplp", (MEMORY, INDEX + 59, CACHE, None, 0.6, 10, False), r"index must lie in \[0, 60\), got 61"),
        ("mplp", (MEMORY, INDEX - 2, None, None, 0.6, 10, False), r"index must lie in \[0, 60\), got -1"),
        ("mplp", (MEMORY, INDEX.int(), CACHE, None, 0.6, 10, False), "index must be torch.int64"),
        ("mplp", (MEMORY, INDEX[None], CACHE, None, 0.6, 10, False), "index must have 1 dimension"),
        ("mplp", (MEMORY.double(), INDEX, CACHE, None, 0.6, 10, False), "memory has the wrong type"),
        ("mplp", (MEMORY.t(), INDEX, None, None, 0.6, 10, False), "memory must be contiguous"),
        ("mplp", (MEMORY, INDEX, CACHE[:50], None, 0.6, 10, False), r"cache must have shape \[60, 60\]"),
        ("mplp", (MEMORY, INDEX, CACHE[:, :50], None, 0.6, 10, False), r"cache must have shape \[60, 60\]"),
        ("mplp", (MEMORY, INDEX, CACHE, ROWS[:1], 0.6, 10, False), r"query_rows must have shape \[2, 60\]"),
        ("mplp", (MEMORY, INDEX, CACHE, None, 0.6, -1, False), "min_rank must be at least 0"),
        ("nearest_neighbors", (MEMORY, INDEX + 59, CACHE, None, 1), "index must lie in"),
        ("nearest_neighbors", (MEMORY, INDEX, CACHE, None, 0), "k must be at least 1"),
        ("update_memory_", (MEMORY, INDEX + 59, FEATURES, MOMENTUM, CACHE, None), "index must lie in"),
        ("update_memory_", (MEMORY, INDEX, FEATURES[:1], MOMENTUM, CACHE, None), "features must have shape"),
        ("update_memory_", (MEMORY, INDEX, FEATURES, MOMENTUM + 1, CACHE, None), "momentum must lie in"),
        ("update_memory_", (MEMORY, INDEX, FEATURES, MOMENTUM, CACHE.t()[1:], None), "cache must have shape"),
        (
            "update_memory_",
            (MEMORY, INDEX, FEATURES, MOMENTUM, CACHE, ROWS.half()),
            "similarity has the wrong",
        ),
        ("write_labels_", (BITS, BITS[1:], INDEX, LABELS), "column_bits must have shape"),
        ("write_labels_", (BITS, BITS.clone(), INDEX + 59, LABELS), "index must lie in"),
        ("write_labels_", (BITS, BITS.clone(), INDEX, LABELS[:1]), "labels must have shape"),
        ("gather_labels", (BITS, INDEX - 3), r"index must lie in \[-1, 60\), got -2"),
        ("pack_labels", (LABELS,), "labels must be bool"),
        ("unpack_labels", (LABELS, 300), "labels must be uint8"),
        ("mutual_label_loss", (ROWS[:, :50], [LABELS[:1]], *LOSS[1:]), "labels must have shape"),
        ("mutual_label_loss", (ROWS, [LABELS], [1.0, 2.0], *LOSS[2:]), "the same length"),
        ("mutual_label_loss", (ROWS, [LABELS], [0.0], *LOSS[2:]), "not all be zero"),
        ("mutual_label_loss", (ROWS, *LOSS[:2], "l1", 5.0, 0.01), "kind must be"),
        ("fused_mutual_label_loss", (FEATURES, MEMORY, ROWS[:, :9], *LOSS), "similarity must have shape"),
        (
            "fused_mutual_label_loss",
            (FEATURES, MEMORY, None, [LABELS], [1.0], "l2", 5.0, 3.0),
            "ratio must lie",
        ),
    ],
)
def test_direct_calls_are_checked(operation, arguments, message):
    """Past the Python checks: nothing outside a tensor is ever read or written."""
    # Up to torch 2.14 an exception of the library keeps its kind, from 2.15 on it is a RuntimeError.
    with pytest.raises((ValueError, RuntimeError), match=message):
        getattr(OPS, operation).default(*arguments)


def test_offsets_past_two_to_the_thirty_first():
    """The last rows of label matrices whose entries, and of a memory whose bytes, int32 does not count."""
    n = 140_000  # 2 n label_bytes(n) = 4.9 GB
    if free_memory(torch.device("cpu")) < 3 * 2 * n * sk.label_bytes(n):
        pytest.skip("needs 15 GB of free memory")
    torch.utils.deterministic.fill_uninitialized_memory = False
    rows = torch.zeros(n, sk.label_bytes(n), dtype=torch.uint8)
    columns = torch.zeros(n, sk.label_bytes(n), dtype=torch.uint8)
    index = torch.tensor([n - 1, 2, n - 2])
    flags = torch.zeros(3, n, dtype=torch.bool)
    flags[:, [0, n - 1]] = True
    ops.write_labels_(rows, columns, index, sk.pack_labels(flags))
    assert torch.equal(sk.unpack_labels(ops.gather_labels(rows, index), n), flags)
    found = sk.unpack_labels(ops.gather_labels(columns, torch.tensor([n - 1, 0, 1])), n)
    assert found[0].nonzero().flatten().tolist() == [2, n - 2, n - 1]
    assert torch.equal(found[0], found[1]) and int(found[2].sum()) == 0


def test_cache_offsets_past_two_to_the_thirty_first():
    n = 50_000  # a cache of 10 GB, of which only the pages that are used come to be
    if free_memory(torch.device("cpu")) < 12e9:
        pytest.skip("needs 12 GB of free memory")
    torch.utils.deterministic.fill_uninitialized_memory = False
    cache, memory = torch.empty(n, n), torch.zeros(n, 2)
    index = torch.tensor([n - 1, n - 3])
    memory[n - 1], memory[n - 3], memory[7] = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8]), 0.5
    touched = torch.tensor([7, n - 3, n - 1])
    for row in touched.tolist():
        torch.mv(memory, memory[row], out=cache[row])
    sk.update_memory_(memory, index, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.5, cache=cache)
    exact = memory.double() @ memory[touched].double().t()
    assert (cache[touched].double() - exact.t()).abs().max() < 1e-6
    assert (cache[7, index].double() - exact[index, 0]).abs().max() < 1e-6
    labels = sk.unpack_labels(sk.mplp(memory, index, cache=cache), n)
    assert labels[0].nonzero().flatten().tolist() == [7, n - 3, n - 1]
    assert sk.nearest_neighbors(memory, index, cache=cache)[0][:, 0].tolist() == [n - 3, n - 1]


def test_an_instruction_set_can_be_forced():
    code = "from snnet_kernels import backend_info; print(backend_info())"
    environment = {**os.environ, "SNNET_CPU_ISA": "baseline"}
    result = python("-c", code, environment=environment)
    assert result.returncode == 0 and ", baseline" in result.stdout
    before = backends.instruction_set()
    message = "SNNET_CPU_ISA must be one of baseline, avx2, avx512 that this processor has, got 'sse9'"
    with pytest.raises(ValueError, match=message):
        backends.select_instruction_set("sse9")
    assert backends.instruction_set() == before


@pytest.mark.parametrize("compiler", ["g++", "clang++", "aarch64-linux-gnu-g++"])
def test_the_parts_for_each_processor_compile_everywhere(compiler):
    """Without a warning: what is chosen by processor and compiler is in these files, and needs no torch."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    sources = sorted((ROOT / "csrc" / "cpu").glob("vector_*.cpp"))
    assert len(sources) == 3
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    for source in [*sources, ROOT / "csrc" / "cpu" / "instruction_set.cpp"]:
        result = subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stderr
