"""Marked blocks of the similarity cache: what is marked, labels by them, marks through updates."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import backends, reference
from snnet_kernels.layout import block_bytes
from snnet_kernels.reference.cache_blocks import update_cache_blocks_
from snnet_kernels.testing import clustered_features
from tests.kernels.cpu_inputs import indices, memory_of

SIZES = [1, 2, 31, 32, 33, 255, 256, 257, 1030, 2100]


@pytest.fixture(params=[*backends.INSTRUCTION_SETS, "reference"])
def implementation(request):
    """The operations of each instruction set of this processor, and of the reference."""
    if request.param == "reference":
        yield reference
        return
    if "cpu" not in backends.servers("mplp", "cpu"):
        pytest.skip("the CPU library is not loaded")
    before = backends.instruction_set()
    try:
        backends.select_instruction_set(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield sk
    backends.select_instruction_set(before)


@pytest.mark.parametrize("n", SIZES)
def test_marks_are_blocks_with_a_value_above_the_floor(implementation, n):
    cache = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    cache[:, ::7] = torch.nan
    for floor in (0.5, 2.0):
        bits = implementation.mark_cache_blocks(cache, floor).bits
        assert bits.shape == (n, block_bytes(n))
        marks = sk.unpack_labels(bits, (n + 31) // 32)
        for block in range((n + 31) // 32):
            expected = (cache[:, 32 * block : 32 * block + 32] > floor).any(1)
            assert torch.equal(marks[:, block], expected)
        assert sk.unpack_labels(bits, 8 * bits.shape[1]).sum() == marks.sum()  # nothing past the last block


@settings(max_examples=60, deadline=None)
@given(
    n=st.one_of(st.integers(1, 100), st.sampled_from(SIZES)),
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([0.0, 0.5, 0.6]),
    floor=st.sampled_from([-2.0, 0.0, 0.5, 0.6, 0.8, 3.0]),
    strict=st.booleans(),
    rows=st.booleans(),
    kind=st.sampled_from(["exact", "clustered", "same", "zero rows", "duplicates"]),
)
def test_labels_are_the_same(n, seed, threshold, floor, strict, rows, kind):
    memory, index = memory_of(kind, n, 8, seed), indices(n, 12, seed)
    cache = memory @ memory.t()
    query_rows = memory_of(kind, 12, 8, seed + 1) @ memory.t() if rows else None
    blocks = sk.mark_cache_blocks(cache, floor)
    arguments = {"cache": cache, "query_rows": query_rows, "strict": strict}
    expected = sk.mplp(memory, index, threshold, 3, **arguments)
    assert torch.equal(sk.mplp(memory, index, threshold, 3, blocks=blocks, **arguments), expected)
    needless = sk.CacheBlocks(torch.full_like(blocks.bits, 0xFF), floor)
    assert torch.equal(sk.mplp(memory, index, threshold, 3, blocks=needless, **arguments), expected)


def test_every_instruction_set_counts_the_same(implementation):
    memory = clustered_features(2100, 32)
    cache, index = memory @ memory.t(), torch.arange(0, 2100, 11)
    cache[:, 5] = torch.nan
    expected = reference.mplp(memory, index, cache=cache)
    blocks = sk.mark_cache_blocks(cache)
    assert torch.equal(implementation.mplp(memory, index, cache=cache, blocks=blocks), expected)


@pytest.mark.skipif("cpu" not in backends.servers("mplp", "cpu"), reason="the CPU library is not loaded")
def test_marks_are_what_is_read():
    memory, index = clustered_features(2000, 64), torch.arange(256)
    cache = sk.build_similarity_cache(memory)
    none = sk.CacheBlocks(torch.zeros_like(sk.mark_cache_blocks(cache).bits), 0.6)
    labels = sk.unpack_labels(sk.mplp(memory, index, cache=cache, blocks=none), 2000)
    # Nothing counts against any candidate whose bar is at least the floor: thresholding alone.
    candidates = memory[index] @ memory.t() > 0.6
    assert torch.equal(labels, candidates)


@settings(max_examples=60, deadline=None)
@given(
    n=st.one_of(st.integers(1, 100), st.sampled_from(SIZES)),
    batch=st.sampled_from([0, 1, 5, 40]),
    seed=st.integers(0, 10**6),
    floor=st.sampled_from([-2.0, 0.0, 0.4, 0.6]),
    momentum=st.sampled_from([0.0, 0.3, 0.9]),
    repeats=st.booleans(),
)
def test_updates_mark_what_they_write(n, batch, seed, floor, momentum, repeats):
    generator = torch.Generator().manual_seed(seed)
    memory = clustered_features(n, 6, seed=seed)
    index = indices(n, batch, seed) if repeats else torch.randperm(n, generator=generator)[:batch]
    features = clustered_features(len(index), 6, seed=seed + 1)
    features[::3] = -memory[index][::3]
    cache = sk.build_similarity_cache(memory)
    blocks = sk.mark_cache_blocks(cache, floor)
    expected = sk.CacheBlocks(blocks.bits.clone(), floor)
    sk.update_memory_(memory, index, features, momentum, cache=cache, blocks=blocks)
    update_cache_blocks_(expected, cache, index.unique())
    lacking = sk.mark_cache_blocks(cache, floor).bits & ~blocks.bits
    assert not lacking.any()
    if len(index.unique()) == len(index):
        assert torch.equal(blocks.bits, expected.bits)
    else:  # a value between two updates of an index may have left its mark
        assert not (expected.bits & ~blocks.bits).any()


def test_the_reference_marks_what_it_writes():
    memory, index = clustered_features(300, 8), torch.tensor([3, 299, 7, 3])
    cache, features = memory @ memory.t(), clustered_features(4, 8, seed=1)
    blocks = sk.mark_cache_blocks(cache, 0.5)
    before = blocks.bits.clone()
    reference.update_memory_(memory, index, features, 0.2, cache=cache, blocks=blocks)
    fresh = sk.mark_cache_blocks(cache, 0.5).bits
    assert torch.equal(blocks.bits[index], fresh[index])
    assert not (fresh & ~blocks.bits).any()
    assert not torch.equal(blocks.bits, before)


@pytest.mark.parametrize("source", ["memory", "feature"])
def test_training_with_marks_gives_the_labels_of_whole_rows(source):
    """Two hundred iterations of drifting features; the twin without marks counts whole rows."""
    n, d, batch = 600, 24, 24
    generator = torch.Generator().manual_seed(0)
    centres = clustered_features(n, d)
    head = sk.SNNetHead(n, d, cache=True, label_source=source)
    twin = sk.SNNetHead(n, d, cache=True, label_source=source)
    twin.memory.current_blocks = lambda: None
    for one in (head, twin):
        one.initialize_(centres)
        one.momentum = 0.5
    for step in range(200):
        index = torch.randint(n, (batch,), generator=generator)
        noise = torch.randn(batch, d, generator=generator)
        features = normalize(centres[index] + 0.1 * noise, dim=1)
        losses = [one(features, index) for one in (head, twin)]
        for one in (head, twin):
            one.update_(index, features)
        assert torch.equal(*losses)
        if step % 50 == 0:
            assert torch.equal(head.pseudo_labels.row_bits, twin.pseudo_labels.row_bits)
    assert torch.equal(head.memory.cache, twin.memory.cache)
    lacking = sk.mark_cache_blocks(head.memory.cache).bits & ~head.memory.block_bits
    assert not lacking.any()


def test_marks_live_and_go_with_the_cache():
    memory = sk.ExemplarMemory(300, 8, cache=True, block_floor=0.7)
    memory.initialize_(clustered_features(300, 8))
    index = torch.arange(0, 300, 7)

    def current() -> torch.Tensor:
        blocks = memory.current_blocks()
        assert blocks.floor == 0.7
        assert torch.equal(blocks.bits, sk.mark_cache_blocks(memory.cache, 0.7).bits)
        for threshold in (0.5, 0.7, 0.9):  # the floor decides how much is read, not what is found
            expected = reference.mplp(memory.features, index, threshold, cache=memory.cache)
            assert torch.equal(memory.predict_labels(index, threshold), expected)
        assert memory.current_blocks().bits is blocks.bits
        return blocks.bits

    place = current().data_ptr()
    memory.rebuild_cache_()
    first = current().clone()
    memory.features[:9] = memory.features[9:18].clone()  # written from outside: both are made afresh
    assert not torch.equal(current(), first)
    state = memory.state_dict()
    assert list(state) == ["features"]
    memory.load_state_dict(state)
    current()
    memory.to("cpu")
    assert current().data_ptr() == place  # once built they stay in their place
    memory = copy.deepcopy(memory)
    current()
    memory.drop_cache_()
    assert memory.block_bits is None and memory.cache is None
    assert sk.ExemplarMemory(300, 8, cache=False).current_blocks() is None


def test_a_head_marks_down_to_its_threshold():
    head = sk.SNNetHead(300, 8, threshold=0.5, cache=True)
    head.initialize_(clustered_features(300, 8))
    assert head.memory.current_blocks().floor == 0.5
    head.warmup = True
    head.update_(torch.arange(4), clustered_features(4, 8, seed=1))
    head.warmup = False
    blocks = head.memory.current_blocks()
    assert torch.equal(blocks.bits, sk.mark_cache_blocks(head.memory.cache, 0.5).bits)


@pytest.mark.skipif("cpu" not in backends.servers("mplp", "cpu"), reason="the CPU library is not loaded")
def test_threads_mark_bytes_of_their_own():
    """Parts of 256 columns: one thread and four leave the same bits."""
    memory = clustered_features(4100, 16)
    index = torch.randperm(4100, generator=torch.Generator().manual_seed(0))[:200]
    features = clustered_features(200, 16, seed=1)
    before, threads = memory @ memory.t(), torch.get_num_threads()
    found = []
    try:
        for number in (1, 4, 4, 4):
            torch.set_num_threads(number)
            cache = before.clone()
            blocks = sk.mark_cache_blocks(cache, 0.3)
            sk.update_memory_(memory.clone(), index, features, 0.2, cache=cache, blocks=blocks)
            found.append(blocks.bits)
    finally:
        torch.set_num_threads(threads)
    expected = sk.mark_cache_blocks(before, 0.3)
    update_cache_blocks_(expected, cache, index)
    for bits in found:
        assert torch.equal(bits, expected.bits)


def test_a_compiled_iteration_reads_and_writes_the_marks():
    torch._dynamo.reset()
    n, d = 90, 12
    heads = [sk.SNNetHead(n, d, cache=True) for _ in range(2)]
    for head in heads:
        head.initialize_(clustered_features(n, d))
        head.momentum = 0.3
        head.memory.rebuild_cache_()
    compiled = torch.compile(heads[1], fullgraph=True, backend="aot_eager")
    compiled_update = torch.compile(heads[1].update_, fullgraph=True, backend="aot_eager")
    for step in range(3):
        index, features = torch.arange(step, step + 5), clustered_features(5, d, seed=step)
        assert torch.equal(heads[0](features, index), compiled(features, index))
        heads[0].update_(index, features)
        compiled_update(index, features)
    assert torch.equal(heads[0].memory.block_bits, heads[1].memory.block_bits)
    assert (heads[0].memory.cache - heads[1].memory.cache).abs().max() < 1e-6


MEMORY = clustered_features(40, 4)
CACHE = MEMORY @ MEMORY.t()
BITS = torch.zeros(40, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("blocks", "cache", "error", "message"),
    [
        (BITS, CACHE, TypeError, r"blocks must be CacheBlocks \(see mark_cache_blocks\), got Tensor"),
        (sk.CacheBlocks(BITS, 0.6), None, ValueError, "cache must be given with them"),
        (sk.CacheBlocks(BITS[:9], 0.6), CACHE, ValueError, r"blocks.bits must have shape \[40, 16\]"),
        (sk.CacheBlocks(BITS.int(), 0.6), CACHE, TypeError, "blocks.bits must be torch.uint8"),
        (sk.CacheBlocks(BITS, "a"), CACHE, TypeError, "blocks.floor must be a number"),
        (sk.CacheBlocks(BITS, float("nan")), CACHE, ValueError, "blocks.floor must be finite"),
    ],
)
def test_bad_blocks_are_named(blocks, cache, error, message):
    index = torch.arange(2)
    with pytest.raises(error, match=message):
        sk.mplp(MEMORY, index, cache=cache, blocks=blocks)
    with pytest.raises(error, match=message):
        sk.update_memory_(MEMORY.clone(), index, MEMORY[:2], 0.5, cache=cache, blocks=blocks)
    with pytest.raises(ValueError, match="floor must be finite"):
        sk.mark_cache_blocks(CACHE, float("inf"))
