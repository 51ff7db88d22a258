"""Tests of the Triton kernels of labels and neighbours, interpreted; ``test_triton_interpreted.py`` runs them.

Values are small multiples of a power of two, so that all products are exact in every precision and in any order, and
results equal the reference's to the bit. Sizes leave a part of every tile empty: rows past the batch, columns past n,
depth past d, bytes past the width of the labels, pairs past their number.
"""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from benchmarks import label_flips
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from snnet_kernels.triton import PRECISIONS, label_prediction, neighbors, similarity
from snnet_kernels.triton.common import candidates, launching, pairs, rank_counts
from snnet_kernels.triton.common.entries import HIGHEST, NOTHING
from snnet_kernels.triton.common.products import round_to_tf32
from snnet_kernels.triton.common.row_bounds import RowBounds, row_bounds
from snnet_kernels.triton.similarity import memory_similarity
from tests.kernels.inputs import batch_of, exact_rows

assert launching.INTERPRETED
ALL_TILES = [
    (precision, number) for precision in PRECISIONS for number in range(len(launching.TILES[precision]))
]
SIZES = [(1, 1, 1), (3, 7, 5), (66, 131, 37), (64, 128, 64)]  # B, n, d


def keys_of(rows: torch.Tensor) -> torch.Tensor:
    """The selection keys of finite rows [B, n]: by falling value, ties by lower column."""
    bits = (rows + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (0x7FFFFFFF - torch.arange(rows.shape[1]))


@pytest.fixture(autouse=True)
def larger_tiles_of_pairs(monkeypatch):
    """The interpreter takes its time for each tile, and for each program that has none."""
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 256)
    monkeypatch.setattr(pairs, "PROGRAMS_PER_PROCESSOR", 1)


@pytest.fixture
def scale_bounds(monkeypatch):
    """Widens the error bounds of "bf16", which then decides less by itself, or takes them away."""

    def scale_by(scale: float) -> None:
        def scaled(matrix: torch.Tensor) -> RowBounds:
            norms, residuals = row_bounds(matrix)
            return RowBounds(norms, residuals * scale)

        for module in (label_prediction, neighbors):
            monkeypatch.setattr(module, "row_bounds", scaled)

    return scale_by


@pytest.mark.parametrize("tile", range(len(similarity.TILES)))
@pytest.mark.parametrize(("batch", "n", "d"), SIZES)
def test_similarity(batch, n, d, tile, monkeypatch):
    monkeypatch.setattr(similarity, "TILES", similarity.TILES[tile : tile + 1])
    features, wide = exact_rows(batch, d, 1), exact_rows(n, d + 3)
    for memory in (wide[:, :d], wide[:, 3:].contiguous(), wide[:, :d].t().contiguous().t()):
        assert torch.equal(memory_similarity(features, memory), features @ memory.t())


def test_similarity_is_symmetric_to_the_bit_and_as_good_as_float32():
    """One entry a tile's depth is not 0: how the interpreter sums the others does not count."""
    memory = torch.zeros(150, 16 * 24)
    memory[:, ::16] = clustered_features(150, 24)
    ours = memory_similarity(memory, memory)
    assert torch.equal(ours, ours.t())
    exact = memory.double() @ memory.double().t()
    assert (ours - exact).abs().max() < 3e-7
    big = label_flips.round_to_tf32(memory)
    assert (big @ big.t() - exact).abs().max() > 1e-5


def test_similarity_of_many_dimensions_where_sums_are_cut_off(monkeypatch):
    """As tensor cores do. Similarities are up to 1, where float32 has steps of 6e-8."""

    def cut_dot(self, a, b, d, *options):
        total = torch.from_numpy(d.data).double()
        for part in (slice(first, first + 8) for first in range(0, a.data.shape[1], 8)):
            total += torch.from_numpy(a.data[:, part]).double() @ torch.from_numpy(b.data[part]).double()
            total.view(torch.int64).bitwise_and_(-1 << 29)
        return interpreter.TensorHandle(total.float().numpy(), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", cut_dot)
    memory = clustered_features(60, 2048)
    ours = memory_similarity(memory, memory)
    exact = memory.double() @ memory.double().t()
    assert (ours - exact).abs().max() < 1e-6 and torch.equal(ours, ours.t())
    assert (ours - label_flips.similarity(memory, "tf32x3")).abs().max() < 2e-7
    high = label_flips.round_to_tf32(memory)
    error = label_flips.cut_sums(high, high, 2048) - high.double() @ high.double().t()
    assert error.max() <= 0 and error.min() < -5e-6  # of one sum


@triton.jit
def round_kernel(values, rounded, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(rounded + place, round_to_tf32(tl.load(values + place)))


HALF = 2.0**-11  # of the last bit of TF32


def test_rounding_to_tf32():
    """To nearest, ties away from zero; NaN of any bits stays."""
    values = torch.tensor(
        [1 + HALF, 1 + 0.99 * HALF, -1 - HALF, 1 + 3 * HALF, 2.0**-130, torch.inf, 3.4028e38, 0.0]
    )
    expected = torch.tensor(
        [1 + 2 * HALF, 1, -1 - 2 * HALF, 1 + 4 * HALF, 2.0**-130, torch.inf, torch.inf, 0.0]
    )
    assert torch.equal(label_flips.round_to_tf32(values), expected)
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -0x400000] * 2, dtype=torch.int32).view(torch.float32)
    rounded = torch.empty(16)
    round_kernel[(1,)](torch.cat([values, nan]), rounded, BLOCK=16)
    assert torch.equal(rounded[:8], expected) and rounded[8:].isnan().all()
    parts = torch.empty(2, 8)
    similarity.split_kernel[(1,)](values, parts, 8, BLOCK=16)
    assert torch.equal(parts[0], expected)
    finite = expected.isfinite()
    assert ((parts.double().sum(0) - values.double())[finite].abs() <= 2.0**-22 * values[finite].abs()).all()


def test_operands_of_tf32_products_are_rounded():
    """On either side. Tensor cores alone would cut the last 13 bits off, and the interpreter leaves them."""
    memory, index = torch.tensor([[1 + HALF], [1.0]]), torch.tensor([0, 1])
    for bar, above in (
        (1 + 1.5 * HALF, [[True, True], [True, False]]),
        (1 + 2.5 * HALF, [[True, False], [False] * 2]),
    ):
        found, _ = candidates.candidate_bits(memory, index, torch.full((2,), bar), "tf32")
        assert reference.unpack_labels(found, 2).tolist() == above


def test_similarity_of_more_feature_tiles_than_a_group():
    features, memory = exact_rows(64 * 9 + 1, 5, 1), exact_rows(70, 5)
    assert torch.equal(memory_similarity(features, memory), features @ memory.t())
    assert memory_similarity(features[:0], memory).shape == (0, 70)
    assert memory_similarity(features, memory[:0]).shape == (577, 0)


@pytest.mark.parametrize(("precision", "tile"), ALL_TILES)
@pytest.mark.parametrize(("batch", "n", "d"), SIZES)
def test_candidates(batch, n, d, precision, tile, use_tile):
    use_tile(precision, tile)
    memory, index = exact_rows(n, d), batch_of(n, batch)
    rows = memory[index] @ memory.t()
    bars = rows[torch.arange(batch), batch_of(n, batch, 1)]  # ties: an entry at its bar is not above it
    bounds = row_bounds(memory) if precision == "bf16" else None
    above, near = candidates.candidate_bits(memory, index, bars, precision, bounds)
    expected = reference.pack_labels(rows > bars[:, None])
    if bounds is None:
        assert torch.equal(above, expected)
    else:
        assert not (above & near).any() and torch.equal((above | near) & expected, expected)
        assert torch.equal(near, near & reference.pack_labels(torch.ones(batch, n, dtype=torch.bool)))
    assert torch.equal(candidates.candidates(memory, index, bars, precision, bounds), expected)


@pytest.mark.parametrize(("batch", "n"), [(1, 1), (5, 7), (4, 128), (9, 1030)])
def test_given_candidates(batch, n):
    rows = exact_rows(batch, n)
    rows[0, 0] = torch.nan
    assert torch.equal(candidates.given_candidates(rows, 0.25), reference.pack_labels(rows > 0.25))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("batch", "n", "share"),
    [(1, 1, 1.0), (5, 300, 0.1), (3, 300, 1.0), (4, 300, 0.0), (3, 70_000, 0.01)],
)
def test_pairs(batch, n, share, given):
    """Counts of pairs; and the largest key below a ceiling, for which every pair has to be found in the bits."""
    if n > 300 and not given:
        pytest.skip("its products would be large")
    memory, index = exact_rows(n, 1 if given else 37), batch_of(n, batch)
    rows = exact_rows(batch, n, 1) if given else memory[index] @ memory.t()
    flags = torch.rand(batch, n, generator=torch.Generator().manual_seed(0)) < share
    if (
        given and n > 1
    ):  # the largest are the sample itself and, where pairs past the last would be sought, no pair
        rows[torch.arange(batch), index] = 8.0
        rows[-1, -1] = 9.0
        flags[-1, -1] = False
    found = pairs.find_pairs(reference.pack_labels(flags))
    assert torch.equal(found.sizes, flags.sum(1))
    assert torch.equal(found.ends, flags.sum(1).cumsum(0))
    blocks = torch.nn.functional.pad(flags, (0, 128 * found.blocks - n)).view(batch, -1, 128).sum(2)
    assert torch.equal(found.before.long(), blocks.cumsum(1) - blocks)
    keys = keys_of(rows)
    highest = torch.full((batch,), HIGHEST)
    for others, ceiling in ((False, highest), (True, highest), (True, keys[:, n // 2].clone())):
        allowed = flags & (keys < ceiling[:, None])
        if others:
            allowed &= torch.arange(n) != index[:, None]
        largest = torch.full((batch,), NOTHING)
        pairs.launch_over_pairs(
            pairs.largest_key_kernel,
            found,
            memory,
            index,
            rows if given else None,
            ceiling,
            largest,
            OTHERS=others,
        )
        assert torch.equal(largest, keys.masked_fill(~allowed, NOTHING).amax(1))


def test_row_bounds():
    memory = torch.randn(37, 300, generator=torch.Generator().manual_seed(0))
    memory[5] = exact_rows(1, 300)
    norms, residuals = row_bounds(memory)
    rounded = (memory.view(torch.int32) & -0x10000).view(torch.float32).double()  # as the interpreter rounds
    lost = (memory - rounded).norm(dim=1)
    longer = memory.double().norm(dim=1).maximum(rounded.norm(dim=1))
    slack = (300 + 64) * 2.0**-23
    assert (norms >= longer).all() and (norms <= 1.0003 * longer).all()
    assert lost[5] == 0 and (residuals >= lost + slack * longer).all()
    assert (residuals <= 1.0003 * lost + 1.001 * slack * longer).all()


def check_labels(memory, index, threshold, min_rank, precision="ieee", rows=None):
    labels = label_prediction.mplp(memory, index, rows, threshold, min_rank, precision=precision)
    expected = reference.mplp(memory, index, threshold, min_rank, query_rows=rows)
    assert torch.equal(labels, expected)
    return int(reference.unpack_labels(expected, len(memory)).sum())


# no candidates; all; so many that some are inconsistent; with and without a lowest rank
DECISIONS = [(1e9, 10), (-1e9, 2), (0.5625, 3), (0.0, 0)]


@pytest.mark.parametrize(("threshold", "min_rank"), DECISIONS)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("batch", "n", "d"), [(1, 1, 1), (3, 7, 5), (5, 131, 37)])
def test_labels(batch, n, d, given, threshold, min_rank):
    memory, index = exact_rows(n, d), batch_of(n, batch)
    memory[n // 2 :: 5] = memory[0].clone()  # duplicates
    rows = exact_rows(batch, d, 1) @ memory.t() if given else None
    positives = check_labels(memory, index, threshold, min_rank, rows=rows)
    assert positives >= batch
    assert positives == batch or threshold < 1e9


@pytest.mark.parametrize(
    ("columns", "precision", "tile"),
    [(64, *tile) for tile in ALL_TILES] + [(512, *tile) for tile in ALL_TILES if tile[1] == 0],
)
def test_labels_with_columns_split_or_not(columns, precision, tile, use_tile, monkeypatch):
    """Ranks of few pairs are counted by several programs each, those of many by one."""
    monkeypatch.setattr(rank_counts, "FEWEST_COLUMNS", columns)
    use_tile(precision, tile)
    memory = exact_rows(150, 20)
    for index in (batch_of(150, 2), batch_of(150, 9, 1)):
        assert check_labels(memory, index, 1.5, 3, precision) > len(index)


@pytest.mark.parametrize("programs", [1, 4])
def test_pairs_that_close_at_different_columns(programs, monkeypatch):
    """150 pairs, of which some close among the first columns; by one program, and cut among many."""
    monkeypatch.setattr(launching, "programs_at_once", lambda tile, device: programs)
    monkeypatch.setattr(rank_counts, "FEWEST_COLUMNS", 128)
    batch, n = 10, 300
    memory, anchors = exact_rows(n, 6), batch_of(n, batch, 2)
    flags = torch.zeros(batch, n, dtype=torch.bool)
    flags[:, ::20] = True
    bars = memory @ memory[anchors].t()  # [n, B]
    above = memory @ memory.t() > bars.t()[:, :, None]
    above[torch.arange(batch), :, anchors] = False
    counted = above.sum(2)
    limits = counted[:, ::20].median(1).values
    counts = limits.clamp_min(3)
    marks, _ = rank_counts.inconsistent_pairs(
        pairs.find_pairs(reference.pack_labels(flags)), memory, 0x7FFFFFFF - anchors, counts, 3, "ieee"
    )
    expected = flags & (counted > counts[:, None])
    assert torch.equal(reference.unpack_labels(marks, n), expected)
    assert 50 < int(expected.sum()) < 100


@pytest.mark.parametrize("min_rank", range(4))
def test_anchors_are_not_counted(min_rank):
    """Their similarity may be rounded to more in a tile than as a bar, here where the two are summed differently."""
    memory, index = clustered_features(100, 40), batch_of(100, 12)
    assert check_labels(memory, index, 0.45, min_rank) > len(index)


def test_labels_of_no_batch():
    assert check_labels(exact_rows(9, 4), torch.zeros(0).long(), 0.5, 3) == 0


ROUNDED = (clustered_features(100, 40), batch_of(100, 8))


@pytest.mark.parametrize("min_rank", [0, 3])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_bf16_labels_are_those_of_float32(scale, min_rank, scale_bounds):
    memory, index = ROUNDED
    scale_bounds(scale)
    assert check_labels(memory, index, 0.3, min_rank, "bf16") > len(index)


def bf16_labels() -> torch.Tensor:
    memory, index = ROUNDED
    return label_prediction.mplp(memory, index, None, 0.3, 3, precision="bf16")


def test_bf16_labels_need_the_second_look_at_candidates(monkeypatch, scale_bounds):
    scale_bounds(30.0)
    before = bf16_labels()
    monkeypatch.setattr(candidates, "launch_over_pairs", lambda *arguments: None)
    assert not torch.equal(bf16_labels(), before)


def test_bf16_labels_need_the_second_look_at_ranks(monkeypatch, scale_bounds):
    scale_bounds(1e4)
    before, count = bf16_labels(), rank_counts.inconsistent_pairs

    def only_sure(*arguments, **options):
        sure, doubtful = count(*arguments, **options)
        return sure, torch.zeros_like(doubtful)

    monkeypatch.setattr(label_prediction, "inconsistent_pairs", only_sure)
    assert not torch.equal(bf16_labels(), before)


def check_neighbors(memory, index, k, rows=None, precision="ieee"):
    expected_columns, expected_values = reference.nearest_neighbors(memory, index, k, query_rows=rows)
    columns, values = neighbors.nearest_neighbors(memory, index, rows, k, precision=precision)
    assert torch.equal(columns, expected_columns)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("precision", "tile"), ALL_TILES)
@pytest.mark.parametrize(("batch", "n", "d"), [(1, 1, 1), (3, 7, 5), (66, 131, 37)])
def test_neighbors(batch, n, d, precision, tile, use_tile):
    use_tile(precision, tile)
    memory, index = exact_rows(n, d), batch_of(n, batch)
    memory[n // 2 :: 5] = memory[0].clone()
    for k in (1, 3, 17 if precision == "ieee" else n + 2):
        if k <= 17 or n < 17:
            check_neighbors(memory, index, k, precision=precision)


@pytest.mark.parametrize(("batch", "n"), [(1, 1), (3, 7), (17, 140)])
def test_neighbors_in_given_rows(batch, n):
    index, rows = batch_of(n, batch), exact_rows(batch, n, 1)
    for k in (1, 17, n + 2)[: 3 if n < 17 else 2]:
        check_neighbors(exact_rows(n, 4), index, k, rows)
        check_neighbors(exact_rows(n, 4), index, k, rows.t().contiguous().t())


def test_neighbors_of_no_batch():
    check_neighbors(exact_rows(9, 4), torch.zeros(0).long(), 3)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_neighbors_that_are_not_numbers(precision, k):
    """NaN is above everything, infinity included, and -0 is +0; among equals the lower column is first."""
    memory, index = exact_rows(90, 6), torch.tensor([4, 5, 60])
    memory[[7, 33]] = torch.nan
    memory[50, 0] = torch.inf
    memory[:, 0] = memory[:, 0].abs() + 0.25  # no products of infinity and 0
    check_neighbors(memory, index, k, precision=precision)
    rows = exact_rows(3, 90, 1)
    rows[0, 40:43], rows[1, ::2], rows[2, 80] = torch.nan, torch.nan, torch.inf
    rows[2, 10:15] = -rows[2, 10:15].abs() * 0
    check_neighbors(memory, index, k, rows)


# So alike that rounding to bf16 puts them in another order.
ALIKE = torch.nn.functional.normalize(
    1 + 0.05 * torch.randn(100, 40, generator=torch.Generator().manual_seed(0)), dim=1
)


@pytest.mark.parametrize("k", [1, 5, 18])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_bf16_neighbors_are_those_of_float32(scale, k, scale_bounds):
    scale_bounds(scale)
    index = batch_of(100, 8)
    columns, values = neighbors.nearest_neighbors(ALIKE, index, None, k)
    ours, similarity = neighbors.nearest_neighbors(ALIKE, index, None, k, precision="bf16")
    assert torch.equal(ours, columns)
    # The interpreter sums tiles and single pairs in different orders.
    torch.testing.assert_close(similarity, values, rtol=1e-6, atol=0)


def test_bf16_neighbors_need_the_error_bound(scale_bounds):
    scale_bounds(0.0)
    index = batch_of(100, 8)
    exact = neighbors.nearest_neighbors(ALIKE, index, None, 5)[0]
    rounded = neighbors.nearest_neighbors(ALIKE, index, None, 5, precision="bf16")[0]
    assert not torch.equal(rounded, exact)
