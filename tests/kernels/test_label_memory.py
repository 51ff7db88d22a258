"""Label bits and the pseudo label memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snnet_kernels as sk
from snnet_kernels import reference
from tests.kernels.inputs import batch_of, label_sets

# Around the borders of a byte, of a warp's word, of a 16-byte word and of a block of the transposition.
SIZES = [1, 2, 7, 8, 9, 33, 127, 128, 129, 302, 1000, 1025, 2050]


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 16), (128, 16), (129, 32), (12936, 1632)])
def test_label_bytes(n, expected):
    assert sk.label_bytes(n) == expected


@pytest.mark.parametrize("pack", [sk.pack_labels, reference.pack_labels], ids=["op", "reference"])
@pytest.mark.parametrize("n", SIZES)
def test_bits_are_numpys(n, pack):
    flags = torch.rand(5, n, generator=torch.Generator().manual_seed(n)) < 0.3
    packed = pack(flags)
    assert packed.shape == (5, sk.label_bytes(n))
    expected = np.packbits(flags.numpy(), axis=1, bitorder="little")
    assert np.array_equal(packed[:, : expected.shape[1]].numpy(), expected)
    assert not packed[:, expected.shape[1] :].any()  # the tail is 0
    for unpack in (sk.unpack_labels, reference.unpack_labels):
        assert torch.equal(unpack(packed, n), flags)


def test_empty_batch():
    assert sk.pack_labels(torch.zeros(0, 40, dtype=torch.bool)).shape == (0, 16)
    assert sk.unpack_labels(torch.zeros(0, 16, dtype=torch.uint8), 40).shape == (0, 40)
    assert sk.pack_labels(torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)


@pytest.mark.parametrize("n", SIZES)
def test_memory_starts_as_identity(n):
    memory = sk.PseudoLabelMemory(n)
    assert torch.equal(memory.to_dense(), torch.eye(n, dtype=torch.bool))
    index = torch.arange(n)
    assert torch.equal(memory.columns(index), memory.rows(index))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 400), batch=st.integers(0, 30), seed=st.integers(0, 10**6), density=st.floats(0, 1))
def test_writes_equal_a_dense_matrix(n, batch, seed, density):
    generator = torch.Generator().manual_seed(seed)
    memory, dense = sk.PseudoLabelMemory(n), torch.eye(n, dtype=torch.bool)
    for _ in range(3):
        index = torch.randint(n, (batch,), generator=generator)  # repeats: the last row counts
        labels = torch.rand(batch, n, generator=generator) < density
        memory.write_(index, sk.pack_labels(labels))
        reference.loop.write_labels_(dense, index, sk.pack_labels(labels))
    every = torch.arange(n)
    assert torch.equal(memory.to_dense(), dense)
    assert torch.equal(sk.unpack_labels(memory.columns(every), n), dense.t())
    asked = torch.randint(-1, n, (batch,), generator=generator)  # -1 is an empty row
    assert torch.equal(memory.rows(asked), reference.gather_labels(memory.row_bits, asked))


def label_memory(n: int, seed: int, density: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """A pseudo label memory and its transpose."""
    dense = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density
    return reference.pack_labels(dense), reference.pack_labels(dense.t())


@pytest.mark.parametrize("n", SIZES)
def test_pack_and_unpack(kernels, n):
    flags = torch.rand(5, n, generator=torch.Generator().manual_seed(n)) < 0.3
    packed = kernels.operations.pack_labels(flags)
    assert torch.equal(packed, reference.pack_labels(flags))
    assert torch.equal(kernels.operations.unpack_labels(packed, n), flags)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_gather(kernels, n, batch):
    bits, _ = label_memory(n, n, 0.5)
    index = batch_of(n + 1, batch, 3) - 1  # -1 is an empty row
    gathered = kernels.operations.gather_labels(bits, index)
    assert torch.equal(gathered, reference.gather_labels(bits, index))


@pytest.mark.parametrize(("seed", "density"), enumerate([0.0, 0.02, 0.2, 1.0]))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_write(kernels, n, batch, seed, density):
    rows, columns = label_memory(n, seed)
    expected = rows.clone(), columns.clone()
    index = batch_of(n, batch, seed + 99)  # with repeats: the last row counts
    [labels] = label_sets(batch, n, [density], seed)
    reference.write_labels_(*expected, index, labels)
    if n % 8:
        labels[:, n // 8] |= 0x80  # a bit past n is dropped
    labels[:, (n + 7) // 8 :] = 0xFF
    kernels.seed(seed)
    kernels.operations.write_labels_(rows, columns, index, labels)
    assert torch.equal(rows, expected[0])
    assert torch.equal(columns, expected[1])


def test_state_dict_restores_both_orientations():
    n = 1100
    memory = sk.PseudoLabelMemory(n)
    index = torch.randperm(n)[:200]
    memory.write_(index, sk.pack_labels(torch.rand(200, n) < 0.05))
    state = memory.state_dict()
    assert list(state) == ["row_bits"]
    restored = sk.PseudoLabelMemory(n)
    restored.load_state_dict(state)
    assert torch.equal(restored.row_bits, memory.row_bits)
    assert torch.equal(restored.column_bits, memory.column_bits)


@pytest.mark.parametrize("storage", ["bits", "lists"])
def test_pairs_of_rows_are_taken_1024_at_a_time(storage, monkeypatch):
    n, nonzero, asked = 2500, torch.Tensor.nonzero, []
    memory = sk.PseudoLabelMemory(n, storage=storage)
    memory.write_(torch.tensor([7, 2100]), sk.pack_labels(torch.arange(2 * n).reshape(2, n) % 1000 == 3))
    expected = memory.to_dense()
    monkeypatch.setattr(
        torch.Tensor, "nonzero", lambda t, **given: asked.append(t.shape) or nonzero(t, **given)
    )
    for first, last in ((0, None), (5, 9), (1000, 2101), (1024, 5000), (9, 4), (2500, 2600)):
        row, column = memory.pairs(first, last)
        wanted = expected.nonzero()
        wanted = wanted[(wanted[:, 0] >= first) & (wanted[:, 0] < (n if last is None else last))]
        assert torch.equal(torch.stack([row, column], 1), wanted)
    packed = [shape[0] for shape in asked if shape[1:] == (sk.label_bytes(n),)]
    assert max(packed, default=0) == (1024 if storage == "bits" else 0)
    for name, rows in {"first": (-5,), "last": (0, -1)}.items():
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 0, got -"):
            memory.pairs(*rows)


@pytest.mark.parametrize(
    ("n", "storage", "needed"), [(10_000_000, "bits", "23283.1"), (2_000_000_000, "auto", "465.7")]
)
def test_memory_that_does_not_fit_is_refused(n, storage, needed):
    with pytest.raises(
        MemoryError, match=f"num_instances={n} needs {needed} GiB for the pseudo label memory"
    ):
        sk.PseudoLabelMemory(n, storage=storage)


def test_size_is_two_bit_matrices():
    memory = sk.PseudoLabelMemory(5000)
    assert sum(buffer.numel() for buffer in memory.buffers()) == 2 * 5000 * sk.label_bytes(5000)
