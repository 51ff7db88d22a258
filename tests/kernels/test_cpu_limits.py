"""The compiled CPU library at its limits: direct calls with bad arguments, large offsets, forced instruction sets."""

import mmap
import os
import shutil
import subprocess

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import backends, ops
from snnet_kernels.memory_size import free_memory
from snnet_kernels.testing import clustered_features
from tests.forks import python
from tests.kernels.inputs import needs_cpu_library
from tests.kernels.list_checks import symmetric_lists
from tests.paths import ROOT

pytestmark = needs_cpu_library
OPS = torch.ops.snnet
N = 60
MEMORY, INDEX = clustered_features(N, 8), torch.tensor([1, 2])
FEATURES = clustered_features(2, 8, seed=1)
LISTS = symmetric_lists(MEMORY, 9)
TABLES = tuple(LISTS[:4])
LABELS, BITS = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(N, 16, dtype=torch.uint8)
ROWS, MOMENTUM = torch.zeros(2, N), torch.tensor(0.5)
UPDATE = "update_memory_lists_"
LOSS = ([LABELS], [1.0], "mmcl", 5.0, 0.01)


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("mplp", (MEMORY, INDEX + 59, None, 0.6, 10), r"index must lie in \[0, 60\), got 61"),
        ("mplp", (MEMORY, INDEX - 2, None, 0.6, 10), r"index must lie in \[0, 60\), got -1"),
        ("mplp", (MEMORY, INDEX.int(), None, 0.6, 10), "index must be torch.int64"),
        ("mplp", (MEMORY, INDEX[None], None, 0.6, 10), "index must have 1 dimension"),
        ("mplp", (MEMORY.double(), INDEX, None, 0.6, 10), "memory has the wrong type"),
        ("mplp", (MEMORY.t(), INDEX, None, 0.6, 10), "memory must be contiguous"),
        ("mplp", (MEMORY, INDEX, ROWS[:1], 0.6, 10), r"query_rows must have shape \[2, 60\]"),
        ("mplp", (MEMORY, INDEX, None, 0.6, -1), "min_rank must be at least 0"),
        ("nearest_neighbors", (MEMORY, INDEX + 59, None, 1), "index must lie in"),
        ("nearest_neighbors", (MEMORY, INDEX, None, 0), "k must be at least 1"),
        ("update_memory_", (MEMORY, INDEX + 59, FEATURES, MOMENTUM), "index must lie in"),
        ("update_memory_", (MEMORY, INDEX, FEATURES[:1], MOMENTUM), "features must have shape"),
        ("update_memory_", (MEMORY, INDEX, FEATURES, MOMENTUM + 1), "momentum must lie in"),
        ("neighbor_lists", (MEMORY, 0, 0.0), "k must be at least 1"),
        ("neighbor_lists", (MEMORY, 5, float("nan")), "floor must be a number"),
        ("symmetric_lists", (*TABLES, 0), "capacity must be at least 1"),
        (
            "symmetric_lists",
            (LISTS.columns - 90, *TABLES[1:], 9),
            r"lists.columns must lie in \[0, 60\), got",
        ),
        (
            "symmetric_lists",
            (*TABLES[:2], LISTS.counts + 50, LISTS.floors, 9),
            r"lists.counts\[0\] must lie in",
        ),
        ("mplp_from_lists", (MEMORY, INDEX + 59, *TABLES, None, 0.6, 10), "index must lie in"),
        ("mplp_from_lists", (MEMORY, INDEX, *TABLES, ROWS[:1], 0.6, 10), "query_rows must have shape"),
        (
            "mplp_from_lists",
            (MEMORY, INDEX, LISTS.columns[:9], *TABLES[1:], None, 0.6, 10),
            "lists.columns must",
        ),
        (
            "mplp_from_lists",
            (MEMORY, INDEX, *TABLES[:3], LISTS.floors[:9], None, 0.6, 10),
            "lists.floors must",
        ),
        (
            "mplp_from_lists",
            (MEMORY, INDEX, LISTS.columns + 90, *TABLES[1:], None, 0.6, 10),
            "lists.columns must",
        ),
        (
            "nearest_from_lists",
            (MEMORY, INDEX, LISTS.columns - 90, *TABLES[1:], 1),
            "lists.columns must lie in",
        ),
        ("nearest_from_lists", (MEMORY, INDEX, *TABLES[:2], -LISTS.counts, LISTS.floors, 1), "lists.counts"),
        ("nearest_from_lists", (MEMORY, INDEX, *TABLES, 0), "k must be at least 1"),
        (UPDATE, (MEMORY, INDEX + 59, FEATURES, MOMENTUM, *LISTS, None), "index must lie in"),
        (UPDATE, (MEMORY, INDEX, FEATURES, MOMENTUM + 1, *LISTS, None), "momentum must lie in"),
        (UPDATE, (MEMORY, INDEX, FEATURES, MOMENTUM, *TABLES, LISTS.mirrors[1:], None), "lists.mirrors must"),
        (
            UPDATE,
            (MEMORY, INDEX, FEATURES, MOMENTUM, *TABLES, LISTS.mirrors + 50, None),
            "lists.mirrors must lie",
        ),
        (UPDATE, (MEMORY, INDEX, FEATURES, MOMENTUM, *LISTS, ROWS.half()), "similarity has the wrong"),
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
    before = MEMORY.clone(), *(table.clone() for table in LISTS)
    # Up to torch 2.14 an exception of the library keeps its kind, from 2.15 on it is a RuntimeError.
    with pytest.raises((ValueError, RuntimeError), match=message):
        getattr(OPS, operation).default(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(before, (MEMORY, *LISTS), strict=True))


@pytest.mark.parametrize("table", ["columns", "mirrors", "counts"])
def test_lists_that_contradict_themselves_lead_outside_of_no_table(table):
    """Rows that are not of the batch are looked at where an update comes to them."""
    generator, refused = torch.Generator().manual_seed(0), 0
    for _ in range(150):
        memory, lists = MEMORY.clone(), symmetric_lists(MEMORY, 9)
        wrong = getattr(lists, table)
        places = torch.randint(wrong.numel(), (20,), generator=generator)
        wrong.view(-1)[places] = torch.randint(0, 9, (20,), dtype=torch.int32, generator=generator)
        index = torch.randint(N, (6,), generator=generator)
        features = normalize(torch.randn(6, 8, generator=generator), dim=1)
        try:
            sk.update_memory_(memory, index, features, 0.2, lists=lists)
        except (ValueError, RuntimeError) as error:
            refused += 1
            assert "lists" in str(error)
        assert memory.isfinite().all()
    assert refused > 10


def test_offsets_past_two_to_the_thirty_first():
    """The last rows of label matrices whose entries, and of a memory whose bytes, int32 does not count."""
    n = 140_000  # matrices of 2.45 GB each: zeros of the system, of which only the pages that are used come to be
    rows, columns = (
        torch.frombuffer(mmap.mmap(-1, n * sk.label_bytes(n)), dtype=torch.uint8).view(n, -1)
        for _ in range(2)
    )
    index = torch.tensor([n - 1, 2, n - 2])
    flags = torch.zeros(3, n, dtype=torch.bool)
    flags[:, [0, n - 1]] = True
    ops.write_labels_(rows, columns, index, sk.pack_labels(flags))
    assert torch.equal(sk.unpack_labels(ops.gather_labels(rows, index), n), flags)
    found = sk.unpack_labels(ops.gather_labels(columns, torch.tensor([n - 1, 0, 1])), n)
    assert found[0].nonzero().flatten().tolist() == [2, n - 2, n - 1]
    assert torch.equal(found[0], found[1]) and int(found[2].sum()) == 0


def test_list_offsets_past_two_to_the_thirty_first():
    n, capacity = 3_000_000, 720  # tables of 8.6 GB each, of which only the pages that are used come to be
    if free_memory(torch.device("cpu")) < 12e9:
        pytest.skip("needs 12 GB of free memory")
    torch.utils.deterministic.fill_uninitialized_memory = False
    memory, index = torch.zeros(n, 2), torch.tensor([n - 1, n - 3])
    memory[n - 1], memory[n - 3], memory[7] = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8]), 0.5
    tables = [torch.empty(n, capacity, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.int32)]
    counts, floors = torch.zeros(n, dtype=torch.int32), torch.zeros(n)
    touched = [7, n - 3, n - 1]
    for row in touched:
        counts[row] = len(touched)
        for place, column in enumerate(touched):
            values = (column, memory[row] @ memory[column], touched.index(row))
            for table, value in zip(tables, values, strict=True):
                table[row, place] = value
    lists = sk.NeighborLists(tables[0], tables[1], counts, floors, tables[2])
    sk.update_memory_(memory, index, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.5, lists=lists)
    for row in touched:
        exact = memory[lists.columns[row, :3].long()].double() @ memory[row].double()
        assert sorted(lists.columns[row, :3].tolist()) == touched
        assert (lists.values[row, :3].double() - exact).abs().max() < 1e-6
    labels, made = OPS.mplp_from_lists(memory, index, *lists[:4], None, 0.6, 10)
    found = sk.unpack_labels(labels, n)
    assert made == 0 and found[0].nonzero().flatten().tolist() == touched
    assert sk.nearest_neighbors(memory, index, lists=lists)[0][:, 0].tolist() == [n - 3, n - 1]


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
