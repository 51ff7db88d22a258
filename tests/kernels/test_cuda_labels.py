"""The CUDA label kernels, run on CPU tensors by the emulation, against the reference: every bit equal."""

import pytest
import torch

from snnet_kernels import reference
from tests.kernels.inputs import batch_of, exact_memory_of

# Around the borders of a byte, of a warp's word, of a 16-byte word, and rows at every alignment.
SIZES = [1, 2, 7, 9, 33, 127, 128, 129, 302]
KINDS = ["exact", "clustered", "same", "zero rows", "duplicates"]


def test_empty_batch_and_empty_memory(cuda_on_cpu):
    operations = cuda_on_cpu.operations
    none = torch.zeros(0, dtype=torch.int64)
    for n, width in ((0, 0), (40, 16)):
        bits = torch.zeros(n, width, dtype=torch.uint8)
        cuda_on_cpu.launches()
        assert [part.shape for part in operations.nearest_neighbors(none, torch.zeros(0, n), 3)] == [
            (0, 3)
        ] * 2
        operations.write_labels_(bits, bits.clone(), none, torch.zeros(0, width, dtype=torch.uint8))
        assert operations.gather_labels(bits, none).shape == (0, width)
        assert cuda_on_cpu.launches() == 0


def test_indices_out_of_range_write_nothing(cuda_on_cpu):
    dense = torch.rand(50, 50, generator=torch.Generator().manual_seed(0)) < 0.05
    rows, columns = reference.pack_labels(dense), reference.pack_labels(dense.t())
    before = rows.clone(), columns.clone()
    index = torch.tensor([-1, 50, 2**40, -(2**40)])
    cuda_on_cpu.operations.write_labels_(rows, columns, index, torch.full((4, 16), 0xFF, dtype=torch.uint8))
    assert torch.equal(rows, before[0]) and torch.equal(columns, before[1])
    assert not cuda_on_cpu.operations.gather_labels(rows, index).any()
    cuda_on_cpu.operations.nearest_neighbors(index, torch.zeros(4, 50), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_nearest_neighbors(cuda_on_cpu, small_constants, n, kind):
    memory = exact_memory_of(kind, n, 6, n)
    cache = memory @ memory.t()
    index = batch_of(n, 6, n + 99)
    for build in (cuda_on_cpu, small_constants):
        build.seed(n)
        for k in (
            (1, 5, 31)
            if build is cuda_on_cpu
            else sorted({1, 2, 5, 31, max(n - 2, 1), max(n - 1, 1), n, n + 3})
        ):
            for query_rows in (cache[index], cache[index].roll(1, 0)):
                ours = build.operations.nearest_neighbors(index, query_rows, k)
                theirs = reference.nearest_neighbors(memory, index, k, query_rows=query_rows)
                assert torch.equal(ours[0], theirs[0])
                assert torch.equal(ours[1], theirs[1])


def test_nan_is_the_nearest(cuda_on_cpu):
    rows = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    rows[1, 17] = rows[2, 0] = rows[2, 99] = torch.nan
    rows[3] = -torch.inf  # and the others all the same, but never the row itself
    index = torch.tensor([5, 17, 3, 0])
    for k, expected in ((1, [0, 0, 0, 1]), (2, [0, 0, 99, 2])):
        neighbors, similarity = cuda_on_cpu.operations.nearest_neighbors(index, rows, k)
        for b in (2, 3):
            assert neighbors[b, k - 1] == expected[b]
        assert torch.isnan(similarity[2]).all() and (similarity[3] == -torch.inf).all()
        rest = reference.nearest_neighbors(torch.zeros(100, 1), index[:2], k, query_rows=rows[:2])
        assert torch.equal(neighbors[:2], rest[0])


def test_wrong_arguments_are_named(cuda_on_cpu):
    operations = cuda_on_cpu.operations
    index, rows, bits = (
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, 5),
        torch.zeros(5, 16, dtype=torch.uint8),
    )
    for call, message in [
        (lambda: operations.nearest_neighbors(index.int(), rows, 1), "index must be torch.int64"),
        (lambda: operations.nearest_neighbors(index[None], rows, 1), "index must have 1 dimension"),
        (lambda: operations.nearest_neighbors(index, rows[:1], 1), r"query_rows must have shape \[2, 5\]"),
        (lambda: operations.nearest_neighbors(index, rows.double(), 1), "query_rows has the wrong type"),
        (lambda: operations.nearest_neighbors(index, rows, 0), "k must be at least 1"),
        (lambda: operations.gather_labels(bits[:, :8], index), r"bits must have shape \[5, 16\]"),
        (
            lambda: operations.write_labels_(bits, bits[1:], index, bits),
            r"column_bits must have shape \[5, 16\]",
        ),
        (lambda: operations.write_labels_(bits, bits, index, bits), r"labels must have shape \[2, 16\]"),
        (
            lambda: operations.gather_labels(torch.zeros(81, dtype=torch.uint8)[1:].view(5, 16), index),
            "bits must begin at a multiple of 16 bytes",
        ),
    ]:
        with pytest.raises((ValueError, RuntimeError), match=message):
            call()


def test_flags_of_any_byte_and_neighbors_infinitely_far(cuda_on_cpu):
    """As in test_layouts.py for the other backends."""
    flags = torch.randint(0, 4, (5, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = cuda_on_cpu.operations.pack_labels(flags.view(torch.bool))
    assert torch.equal(packed, reference.pack_labels(flags > 0))
    rows = torch.full((2, 5), -torch.inf)
    rows[1, 2], rows[0, 4] = 0.5, torch.nan
    for k in (1, 2, 5, 7):
        index, similarity = cuda_on_cpu.operations.nearest_neighbors(torch.tensor([0, 1]), rows, k)
        assert torch.equal(index[:, :4], torch.tensor([[4, 1, 2, 3], [2, 0, 3, 4]])[:, :k])
        assert (
            (index[:, 4:] == -1).all()
            and similarity[0, 0].isnan()
            and (similarity[:, 1:] == -torch.inf).all()
        )
