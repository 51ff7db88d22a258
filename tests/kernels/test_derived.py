"""What is derived from a memory follows it, whoever wrote it; layouts, places to be made in."""

import copy
import io

import pytest
import torch
import torch.distributed as dist

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.derived import Source, row_checksums
from snnet_kernels.ops.checksums import checksums, checksums_match
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import check_lists
from tests.memory import needs_freed_memory

N, D = 300, 32
FIRST, SECOND = clustered_features(N, D), clustered_features(N, D, seed=1)
EVERY = torch.arange(N)
BITS = [sk.mplp(rows, EVERY, 0.4) for rows in (FIRST, SECOND)]


def assign(module, name, new):
    setattr(module, name, new.clone())


def assign_again(module, name, new):
    """The allocator hands the address of the first tensor to the last."""
    setattr(module, name, torch.zeros_like(new))
    setattr(module, name, new.clone())


def in_place(module, name, new):
    getattr(module, name).copy_(new)


def assigned_state(module, name, new):
    module.load_state_dict({name: new.clone()}, assign=True)


def loaded_file(module, name, new):
    file = io.BytesIO()
    torch.save({name: new}, file)
    file.seek(0)
    module.load_state_dict(torch.load(file))


def data(module, name, new):
    getattr(module, name).data.copy_(new)


def data_assigned(module, name, new):
    getattr(module, name).data = new.clone()


def numpy_view(module, name, new):
    getattr(module, name).numpy()[:] = new.numpy()


def dlpack(module, name, new):
    torch.from_dlpack(getattr(module, name).numpy()).copy_(new)


def inference(module, name, new):
    with torch.inference_mode():
        getattr(module, name).copy_(new)


WRITERS = [
    assign,
    assign_again,
    in_place,
    assigned_state,
    loaded_file,
    data,
    data_assigned,
    numpy_view,
    dlpack,
    inference,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_labels_follow_the_memory(write):
    memory = sk.ExemplarMemory(N, D, neighbors=64)
    memory.features = FIRST.clone()
    assert torch.equal(memory.predict_labels(EVERY, 0.4), BITS[0])
    before = memory.version
    write(memory, "features", SECOND)
    assert torch.equal(memory.predict_labels(EVERY[:9], 0.4), BITS[1][:9])
    assert memory.version > before
    memory.update_(EVERY[:5], FIRST[:5], 0.5)
    write(memory, "features", FIRST)
    memory.update_(EVERY[7:9], SECOND[:2], 0.5)
    check_lists(memory.current_lists().tables, memory.features @ memory.features.t(), 1e-6)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_columns_follow_the_rows(write):
    bits = sk.PseudoLabelMemory(N)
    bits.write_(EVERY[:50], BITS[0][:50])
    write(bits, "row_bits", BITS[1])
    dense = sk.unpack_labels(BITS[1], N)
    assert torch.equal(bits.columns(EVERY[3:7]), sk.pack_labels(dense[:, 3:7].t()))
    write(bits, "row_bits", BITS[0])
    bits.write_(EVERY[40:], BITS[1][40:])
    assert torch.equal(sk.unpack_labels(bits.column_bits, N), bits.to_dense().t())


def test_what_no_sign_tells_can_be_said():
    """A row that no call names was written past autograd."""
    head = sk.SNNetHead(N, D, threshold=0.4)
    head.initialize_(FIRST)
    index = torch.arange(20)
    head.memory.predict_labels(index, 0.4)
    place = head.memory.lists.columns.data_ptr()
    head.memory.features.data[100:] = SECOND[100:]
    head.pseudo_labels.row_bits.data[100:] = BITS[1][100:]
    check_lists(head.memory.current_lists(index).tables, FIRST @ FIRST.t(), 1e-6)  # not noticed
    head.mark_written_()
    now = torch.cat([FIRST[:100], SECOND[100:]])
    check_lists(head.memory.lists.tables, now @ now.t(), 1e-6)
    labels = reference.mplp(now, index, 0.4, cache=now @ now.t())
    assert torch.equal(head.memory.predict_labels(index, 0.4), labels)
    assert torch.equal(sk.unpack_labels(head.pseudo_labels.column_bits, N), head.pseudo_labels.to_dense().t())
    assert head.memory.lists.columns.data_ptr() == place


def test_interrupted_columns_are_made_again(monkeypatch):
    n = 1100  # two blocks of rows
    labels = sk.PseudoLabelMemory(n, storage="bits")
    every = torch.arange(n)
    labels.columns(every)
    dense = torch.rand(n, n, generator=torch.Generator().manual_seed(0)) < 0.01
    dense[-1] = torch.eye(n)[-1]  # a row that has not changed
    labels.row_bits.numpy()[:] = sk.pack_labels(dense).numpy()
    monkeypatch.setattr("snnet_kernels.label_memory.ops.pack_labels", interrupted_at(2, sk.pack_labels))
    with pytest.raises(KeyboardInterrupt):
        labels.mark_written_()
    assert torch.equal(labels.columns(every[-1:]), sk.pack_labels(dense[:, -1:].t()))


def interrupted_at(number, function):
    """The function, which an interrupt comes in the place of at this call."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args)

    return call


def test_the_similarity_of_a_forward_pass_follows_its_features_and_the_memory():
    for change in ("features", "memory", "nothing"):
        head = sk.SNNetHead(N, D)
        head.initialize_(FIRST)
        head.momentum = 0.3
        index, features = torch.arange(5), SECOND[:5].clone()
        head(features, index)
        if change == "features":
            features.numpy()[2] = FIRST[50].numpy()
        elif change == "memory":
            head.memory.features.numpy()[3] = FIRST[60].numpy()
        assert (head._similarity_of(features) is None) is (change == "features")
        head.update_(index, features)
        assert head.memory._lists_follow is (change != "memory")
        check_lists(head.memory.current_lists().tables, head.memory.features @ head.memory.features.t(), 1e-6)


def test_distributed_writes_are_noticed(one_process_group):
    """What a receiving process sees: values change, and no sign of a write."""
    memory = sk.ExemplarMemory(N, D)
    memory.features = FIRST.clone()
    memory.predict_labels(EVERY, 0.4)
    before = memory.features._version
    for operation in (dist.broadcast, dist.all_reduce):
        memory.features.data.copy_(FIRST)
        memory.current_lists(EVERY)
        operation(memory.features, 0) if operation is dist.broadcast else operation(memory.features)
        memory.features.data.copy_(SECOND)  # one process receives what it sent: the others get this
        assert torch.equal(memory.predict_labels(EVERY, 0.4), BITS[1])
    assert memory.features._version >= before


def places_of(head: sk.SNNetHead) -> dict[str, int]:
    """Where everything lies that a step reads or writes."""
    tensors = dict(head.named_buffers()) | {"asked": head.memory.lists.asked}
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def test_nothing_moves_over_three_epochs():
    """A captured CUDA graph goes on reading and writing what it was captured with."""
    head = sk.SNNetHead(N, D)
    head.initialize_(FIRST)
    state = copy.deepcopy(head.state_dict())
    places = None
    for epoch in range(3):
        for warmup in (True, False):
            head.warmup = warmup
            head.momentum = 0.1 * epoch
            head.train()
            head.memory.build_lists_()
            head.memory.lists.products.fill_(N)  # so many rows that the lists are made afresh
            head.memory.renew_lists_()
            assert int(head.memory.lists.products) == 0
            for step in range(2):
                index = torch.arange(8) + 20 * step
                features = SECOND[index].clone().requires_grad_()
                head(features, index).backward()
                head.update_(index, features.detach())
            head.eval()(SECOND[:4], torch.arange(4))
            head.label_statistics()
            head.memory.current_lists()
            now = places_of(head)
            assert places in (None, now)
            places = now
        head.to("cpu").float()
        head.mark_written_()
        head.initialize_(FIRST)
        head.load_state_dict(state)
        assert places_of(head) == places
        check_lists(head.memory.lists.tables, FIRST @ FIRST.t(), 1e-6)
    assert set(places) == {
        "_momentum", "memory.features", "memory.lists.columns", "memory.lists.values", "memory.lists.counts",
        "memory.lists.floors", "memory.lists.mirrors", "memory.lists.products", "asked",
        "pseudo_labels.row_bits", "pseudo_labels.column_bits",
    }  # fmt: skip


def test_a_source_copied_or_read_from_a_file_vouches_for_nothing():
    head = sk.SNNetHead(N, D)
    head.initialize_(FIRST)
    head(FIRST[:4], torch.arange(4))
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    for other in (copy.deepcopy(head), torch.load(file, weights_only=False)):
        assert not other.memory._source.holds(other.memory.features)
        other.memory.features.data.copy_(SECOND)
        assert torch.equal(other.memory.predict_labels(EVERY, 0.4), BITS[1])
    assert head.memory._source.holds(head.memory.features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("width", [0, 1, 3, 8])
def test_checksums_tell_rows_apart(dtype, width):
    rows = torch.arange(5 * width).reshape(5, width).to(dtype)
    sums = row_checksums(rows)
    assert torch.equal(sums[[4, 0]], row_checksums(rows, torch.tensor([4, 0])))
    assert len(sums.unique()) == (5 if width else 1)
    if width > 1:
        assert not (sums == row_checksums(rows.flip(1))).any()  # places count
    assert torch.equal(row_checksums(rows.t().contiguous().t()), sums)


@pytest.mark.parametrize("width", [16, 12, 6, 3], ids=["int64", "int32", "int16", "uint8"])
def test_checksums_see_every_pair_of_changed_bits(width):
    bits = 8 * width
    one, other = torch.triu_indices(bits, bits)  # the diagonal: one bit
    changes = torch.zeros(len(one) + 1, bits, dtype=torch.bool)
    changes[torch.arange(len(one)), one] = changes[torch.arange(len(one)), other] = True
    changes = sk.pack_labels(changes)[:, :width]
    for row in (torch.zeros(width, dtype=torch.uint8), torch.arange(width) * 37 + 200):
        sums = row_checksums(changes ^ row.to(torch.uint8))
        assert not (sums[:-1] == sums[-1]).any()


def test_checksums_tell_labels_apart():
    """Of 256 images: no label, one, two; so also labels of which one is another."""
    one, other = torch.triu_indices(256, 256)
    labels = torch.zeros(len(one) + 1, 256, dtype=torch.bool)
    labels[torch.arange(len(one)), one] = labels[torch.arange(len(one)), other] = True
    assert len(row_checksums(sk.pack_labels(labels)).unique()) == len(labels)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_checksums_equal_their_definition(dtype, width):
    kind = torch.iinfo(dtype)
    edges = torch.tensor([kind.min, kind.max, 0, 1, kind.max // 2, kind.max - 5], dtype=dtype)
    words = torch.stack([edges, edges.flip(0)], 1)[:, :width].contiguous()
    keys = torch.tensor([-(2**63) + 2**31, 2**63 - 7])[:width]
    expected = []
    for row in words.tolist():
        total = 0
        for word, key in zip(row, keys.tolist(), strict=True):
            total += (word + key) % 2**32 * (((word >> 32) + (key >> 32)) % 2**32)
        expected.append(total % 2**64)
    rows = torch.arange(len(words))
    for sums in (checksums(words, None, keys), reference.checksums(words, None, keys)):
        assert [s % 2**64 for s in sums.tolist()] == expected
        assert checksums_match(words, rows, keys, sums)


def odd_signs(features):
    features[: N // 2, 1::2] *= -1


def even_signs(features):
    features[: N // 2, 0::2] *= -1


def two_signs(features):
    features[7, [1, 3]] *= -1


@pytest.mark.parametrize("write", [odd_signs, even_signs, two_signs], ids=lambda write: write.__name__)
def test_changed_signs_are_noticed(write):
    memory = sk.ExemplarMemory(N, D)
    memory.initialize_(FIRST)
    memory.predict_labels(EVERY, 0.4)
    state = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    write(memory.features.numpy())
    assert torch.equal(memory.predict_labels(EVERY, 0.4), sk.mplp(memory.features, EVERY, 0.4))
    write(state["features"].numpy())
    memory = sk.ExemplarMemory(N, D)
    memory.load_state_dict(state)
    assert memory.lists.columns is None  # lists of other features


@pytest.mark.parametrize("pair", [(63, 127), (63, 255), (60, 100)], ids=str)
def test_columns_follow_a_pair_of_changed_bits(pair):
    bits = sk.PseudoLabelMemory(256, storage="bits")
    columns = torch.tensor(pair)
    bits.columns(columns)
    row = torch.tensor([5])
    labels = torch.zeros(1, 256, dtype=torch.bool)
    labels[0, 5] = True
    bits.write_(row, sk.pack_labels(labels))
    for column in pair:
        bits.row_bits.numpy()[5, column // 8] ^= 1 << (column % 8)
    bits.rows(row)
    found = sk.unpack_labels(bits.columns(torch.cat([columns, row])), 256)
    assert torch.equal(found, bits.to_dense()[:, [*pair, 5]].t())
    assert found[:, 5].all()
    bits.write_(row, sk.pack_labels(labels))
    assert torch.equal(sk.unpack_labels(bits.column_bits, 256), bits.to_dense().t())


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_sums_of_chosen_rows_are_compared(dtype, width, plain):
    rows = torch.arange(5 * width).reshape(5, width).to(dtype)
    rows = rows if plain else rows.t().contiguous().t()
    source = Source()
    source.remember_rows(rows)
    rows.numpy()[3, -1] += 1
    assert source.holds(rows) and source.holds(rows, torch.tensor([0, -1, 4, 0]))
    assert not source.holds(rows, torch.tensor([0, -1, 3]))


@pytest.mark.parametrize(
    "rows", [torch.zeros(1, 1).expand(0, 4), torch.zeros(1, 1).expand(1, 4), torch.zeros(0, 4)]
)
def test_rows_with_odd_strides_have_checksums(rows):
    assert torch.equal(row_checksums(rows), row_checksums(torch.zeros(len(rows), 4)))


@needs_freed_memory
def test_a_source_tells_an_address_that_was_used_again():
    source, seen = Source(), set()
    for _ in range(20):
        tensor = torch.zeros(64, 64)
        assert not source.holds(tensor)
        source.remember(tensor)
        assert source.holds(tensor.detach())
        seen.add(tensor.data_ptr())
        del tensor
    assert len(seen) < 20


def shifted(tensor):
    """The same in a storage that begins one element earlier."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_matrix_that_begins_inside_a_word_has_the_same_checksums(dtype):
    rows = torch.arange(5 * 48).reshape(5, 48).to(dtype)
    assert torch.equal(row_checksums(shifted(rows)), row_checksums(rows))
    assert torch.equal(row_checksums(shifted(rows), EVERY[2:4]), row_checksums(rows, EVERY[2:4]))


def test_memories_and_features_may_be_parts_of_a_flat_buffer():
    heads = [sk.SNNetHead(N, D, threshold=0.4) for _ in range(2)]
    index, losses = torch.arange(8), []
    for head, place in zip(heads, (shifted, torch.clone), strict=True):
        head.momentum = 0.5
        head.memory.features, head.pseudo_labels.row_bits = place(FIRST), place(BITS[1])
        head.mark_written_()
        features = place(SECOND[:8]).requires_grad_()
        losses.append(head(features, index))
        losses[-1].backward()
        head.update_(index, features.detach())
        features.detach().numpy()[3] = FIRST[9].numpy()
        assert head._similarity_of(features.detach()) is None
        losses.append(head(features, index))
    assert torch.equal(losses[0], losses[2]) and torch.equal(losses[1], losses[3])
    for ours, theirs in zip(heads[0].buffers(), heads[1].buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("storage", ["bits", "lists"])
@pytest.mark.parametrize("place", ["float64", "meta", "inference"])
def test_buffers_have_their_types_wherever_a_head_is_made(place, storage):
    expected = sk.SNNetHead(N, D, label_storage=storage)
    expected.initialize_(FIRST)
    expected.momentum = 0.25
    state = copy.deepcopy(expected.state_dict())
    if place == "float64":
        torch.set_default_dtype(torch.float64)
        try:
            head = sk.SNNetHead(N, D, label_storage=storage)
            head.load_state_dict(state)
            head.memory.build_lists_()
            assert clustered_features(3, 4).dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
    elif place == "meta":
        with torch.device("meta"):
            head = sk.SNNetHead(N, D, label_storage=storage)
        assert all(buffer.is_meta for buffer in head.buffers())
        head.load_state_dict(state, assign=True)
    else:
        with torch.inference_mode():
            head = sk.SNNetHead(N, D, label_storage=storage)
            head.load_state_dict(state)
            head.memory.build_lists_()
    index = torch.arange(6)
    for step in range(2):
        losses = []
        for one in (head, expected):
            features = SECOND[index + step].clone().requires_grad_()
            losses.append(one(features, index))
            losses[-1].backward()
            one.update_(index, features.detach())
        assert torch.equal(*losses)
    for (name, ours), theirs in zip(head.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
        assert not ours.is_inference()


def test_an_assigned_state_of_other_types_is_taken_to_the_buffers_types():
    head = sk.SNNetHead(N, D)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in head.state_dict().items()
    }
    head.load_state_dict(state, assign=True)
    assert head.memory.features.dtype == head.momentum.dtype == torch.float32
    assert torch.isfinite(head(FIRST[:2], torch.arange(2)))


def test_features_that_are_not_normalized_are_noticed_once():
    head = sk.SNNetHead(N, D)
    head.initialize_(FIRST)
    with pytest.raises(ValueError, match=r"features must have rows of length 1 .*: row 0 has length 3"):
        head(3 * FIRST[:2], torch.arange(2))
    head(FIRST[:2], torch.arange(2))
    assert head(3 * FIRST[:2], torch.arange(2)).item() > 1  # nobody looks again


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_lengths_of_any_floating_type_are_looked_at(dtype):
    losses = []
    for features in (torch.eye(2, D), torch.eye(2, D).to(dtype)):
        head = sk.SNNetHead(N, D)
        head.initialize_(FIRST)
        losses.append(head(features, torch.arange(2)))
        assert head._saw_lengths
    assert torch.equal(*losses)


NOTHING = {
    "no rows": FIRST[:0],
    "rows that are not finite": FIRST[:2] / 0,
    "zero rows": 0 * FIRST[:2],
    "rows whose length overflows": 1e25 * FIRST[:2],
}


@pytest.mark.parametrize("nothing", NOTHING)
def test_a_batch_that_tells_no_length_is_not_the_last_that_is_looked_at(nothing):
    head = sk.SNNetHead(N, D)
    head.initialize_(FIRST)
    features = NOTHING[nothing]
    head(features, torch.arange(len(features)))
    with pytest.raises(ValueError, match=r"features must have rows of length 1 .*: row 0 has length 3"):
        head(3 * FIRST[:2], torch.arange(2))
