"""The pseudo label memory as lists: what goes in and comes out is that of bits."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snnet_kernels as sk
from snnet_kernels import label_memory, label_tables, reference
from snnet_kernels.label_list_layout import list_entries
from snnet_kernels.label_tables import LabelTables
from tests.kernels.inputs import memory_of, needs_cpu_library


class PlainTables(LabelTables):
    """The same, written in plain PyTorch."""

    def write_(self, index: torch.Tensor, labels: torch.Tensor) -> None:
        while any(
            needed := reference.write_label_lists_(
                self._table("row"), self._table("column"), index, labels
            ).tolist()
        ):
            for side, room in zip(("row", "column"), needed, strict=True):
                self._buffers.update(self._made(side, *list_entries(*self._table(side)[:3]), room=room))


def same(bits: sk.PseudoLabelMemory, lists: sk.PseudoLabelMemory, index: torch.Tensor) -> None:
    assert torch.equal(bits.rows(index), lists.rows(index))
    assert torch.equal(bits.columns(index), lists.columns(index))
    assert torch.equal(bits.to_dense(), lists.to_dense())
    for ours, theirs in zip(lists.pairs(), bits.pairs(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(lists.pairs(1, 3), bits.pairs(1, 3), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([1, 2, 9, 130, 300]),
    seed=st.integers(0, 2**16),
    shares=st.lists(st.sampled_from([0.0, 0.02, 0.3, 1.0]), min_size=1, max_size=5),
    plain=st.booleans(),
)
def test_lists_hold_what_bits_hold(n, seed, shares, plain):
    """Also repeated indices, empty and full rows, lists that grow and move, and pairs that go again."""
    generator = torch.Generator().manual_seed(seed)
    bits, lists = sk.PseudoLabelMemory(n, storage="bits"), sk.PseudoLabelMemory(n, storage="lists")
    if plain:
        lists.tables = PlainTables(n)
    for share in shares:
        index = torch.randint(n, (7,), generator=generator)
        labels = sk.pack_labels(torch.rand(7, n, generator=generator) < share)
        bits.write_(index, labels)
        lists.write_(index, labels)
    same(bits, lists, torch.cat([torch.randint(n, (9,), generator=generator), torch.tensor([-1])]))


def test_entries_of_lists_come_one_list_after_the_other():
    tables = filled("lists").tables
    index = torch.tensor([30, 3, 30, 129])
    wanted = [tables.rows(index[b : b + 1]) for b in range(4)]
    for gather in (torch.ops.snnet.gather_list_entries, reference.gather_list_entries):
        entries, sizes = gather(*tables.lists("row"), index)
        assert entries.dtype == sizes.dtype == torch.int32 and len(entries) == int(sizes.sum())
        for own, labels in zip(entries.split(sizes.tolist()), wanted, strict=True):
            assert own.sort().values.tolist() == sk.unpack_labels(labels, 130).nonzero()[:, 1].tolist()
    with pytest.raises(ERRORS, match=r"index must lie in \[0, 130\), got -1"):
        torch.ops.snnet.gather_list_entries(*tables.lists("row"), torch.tensor([-1]))


ERRORS = (ValueError, RuntimeError)  # from torch 2.15 on an error of the library is one of the latter
LARGE = 2**62


@needs_cpu_library
@pytest.mark.parametrize("part", ["starts", "counts", "entries"])
@pytest.mark.parametrize("value", [-1, -LARGE, 10_000_000, LARGE])
def test_lists_outside_of_their_table_are_not_read(part, value):
    """Such as to_empty() leaves them."""
    tables = filled("lists").tables
    entries, starts, counts = (tensor.clone() for tensor in tables.lists("row"))
    given = {"entries": entries, "starts": starts, "counts": counts}
    kind = torch.iinfo(given[part].dtype)
    given[part][int(starts[30]) if part == "entries" else 30] = max(kind.min, min(kind.max, value))
    others, index = torch.tensor([29, 31, -1]), torch.tensor([31, 30])
    told = r"entries of list 30 must lie in \[0, 130\)" if part == "entries" else "list 30 must lie in the"
    assert torch.equal(torch.ops.snnet.gather_label_lists(*given.values(), others, 130), tables.rows(others))
    with pytest.raises(ERRORS, match=told):
        torch.ops.snnet.gather_label_lists(*given.values(), index, 130)
    if part != "entries":
        with pytest.raises(ERRORS, match=told):
            torch.ops.snnet.gather_list_entries(*given.values(), index)
        memory = filled("lists")
        getattr(memory.tables, f"row_{part}").copy_(given[part])
        for read in (memory.pairs, lambda: memory.pairs(25, 35), memory.state_dict):
            with pytest.raises(ERRORS, match=told):
                read()
        assert len(memory.pairs(31, 35)[0]) == int(counts[31:35].sum())


@needs_cpu_library
@pytest.mark.parametrize("part", ["starts", "counts"])
@pytest.mark.parametrize("side", ["row", "column"])
def test_lists_outside_of_their_table_are_not_made_afresh(side, part):
    """100 rows of 40 positives have no room in either table."""
    memory, columns = sk.PseudoLabelMemory(130, storage="lists"), torch.arange(130)
    label = sk.pack_labels(((columns >= 60) & (columns < 100))[None].expand(100, -1).contiguous())
    getattr(memory.tables, f"{side}_{part}")[120] = 10_000_000
    before = {name: tensor.clone() for name, tensor in memory.tables.named_buffers()}
    with pytest.raises(ERRORS, match="list 120 must lie in the"):
        memory.write_(torch.arange(100), label)
    for name, tensor in memory.tables.named_buffers():
        assert not name.startswith(side) or torch.equal(tensor, before[name]), name


PARTS = [(side, part) for side in ("row", "column") for part in ("starts", "counts", "sizes", "used")]


@needs_cpu_library
@pytest.mark.parametrize("value", [-1, -LARGE, 10_000_000, LARGE])
@pytest.mark.parametrize(("side", "part"), [*PARTS, ("row", "entries")])
@pytest.mark.parametrize("adds", [True, False])
def test_lists_outside_of_their_table_are_not_written(side, part, adds, value):
    """Row 30 loses column 30, and gets or loses column 40."""
    memory, row = sk.PseudoLabelMemory(130, storage="lists"), torch.tensor([30])
    tables, place = memory.tables, 30 if side == "row" else 40
    without, with_40 = torch.zeros(1, 130, dtype=torch.bool), (torch.arange(130) == 40)[None]
    if not adds:
        memory.write_(row, sk.pack_labels(with_40 | (torch.arange(130) == 30)))
    damaged = getattr(tables, f"{side}_{part}")
    at = {"used": (), "entries": int(tables.row_starts[30])}.get(part, place)
    damaged[at] = max(torch.iinfo(damaged.dtype).min, min(torch.iinfo(damaged.dtype).max, value))
    before = {name: tensor.clone() for name, tensor in tables.named_buffers()}
    told = {"used": "used must lie in", "entries": "entries of row 30 must lie in"}
    with pytest.raises(ERRORS, match=told.get(part, f"list {place} must lie in the")):
        memory.write_(row, sk.pack_labels(with_40 if adds else without))
    for name, tensor in tables.named_buffers():
        assert torch.equal(tensor, before[name]), name


def filled(storage: str, n: int = 130) -> sk.PseudoLabelMemory:
    memory = sk.PseudoLabelMemory(n, storage=storage)
    labels = torch.rand(50, n, generator=torch.Generator().manual_seed(0)) < 0.1
    memory.write_(torch.arange(20, 70), sk.pack_labels(labels))
    return memory


@pytest.mark.parametrize("before", ["bits", "lists"])
@pytest.mark.parametrize("after", ["bits", "lists"])
def test_either_storage_loads_the_state_of_the_other(before, after):
    kept = filled(before)
    loaded = sk.PseudoLabelMemory(130, storage=after)
    state = kept.state_dict()
    assert sorted(state) == (["row_bits"] if before == "bits" else ["row_counts", "row_entries"])
    loaded.load_state_dict(state)
    same(filled("bits"), loaded, torch.arange(130))
    same(filled("bits"), copy.deepcopy(loaded), torch.arange(130))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_counts": torch.ones(130, dtype=torch.int32)}, "whose sum is E"),
        ({"row_counts": torch.ones(129, dtype=torch.int32)}, r"int32 \[130\]"),
        ({"row_entries": torch.zeros(5)}, "must be int32"),
        ({"row_entries": torch.zeros(130, dtype=torch.int32) - 1, "row_counts": torch.ones(130, dtype=torch.int32)},
         r"distinct columns in \[0, 130\)"),
        ({"row_entries": torch.full((130,), 130, dtype=torch.int32), "row_counts": torch.ones(130, dtype=torch.int32)},
         r"distinct columns in \[0, 130\)"),
        ({"row_entries": torch.zeros(260, dtype=torch.int32), "row_counts": torch.full((130,), 2, dtype=torch.int32)},
         "distinct columns"),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused_and_nothing_is_lost(change, message):
    state = filled("lists").state_dict() | change
    for storage in ("lists", "bits"):
        memory = filled(storage)
        with pytest.raises(RuntimeError, match=message):
            memory.load_state_dict(state)
        same(filled("bits"), memory, torch.arange(130))


@pytest.mark.parametrize("call", [1, 2])
def test_what_ends_before_both_tables_are_made_leaves_the_old_ones(call, monkeypatch):
    memory, other = filled("lists"), sk.PseudoLabelMemory(130, storage="lists")
    made, calls = label_tables.made_lists, []

    def refused(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(given)
        if len(calls) == call:
            raise MemoryError
        return made(*given)

    state = other.state_dict()
    monkeypatch.setattr(label_tables, "made_lists", refused)
    with pytest.raises(MemoryError):
        memory.load_state_dict(state)
    monkeypatch.undo()
    same(filled("bits"), memory, torch.arange(130))
    memory.load_state_dict(state)
    assert torch.equal(memory.to_dense(), torch.eye(130, dtype=torch.bool))


@pytest.mark.parametrize("saved", ["bits", "lists"])
@pytest.mark.parametrize("storage", ["bits", "lists"])
def test_a_state_of_another_number_of_images_is_one_of_torchs_errors(storage, saved):
    """load_state_dict() lists all errors of all modules in one."""
    state = sk.PseudoLabelMemory(300, storage=saved).state_dict()
    memory = filled(storage)
    module = torch.nn.ModuleDict({"labels": memory, "layer": torch.nn.Linear(2, 2, bias=False)})
    state = {f"labels.{name}": value for name, value in state.items()} | {"layer.weight": torch.ones(3, 3)}
    with pytest.raises(RuntimeError, match=r"(?s)labels\.row_.*layer\.weight|layer\.weight.*labels\.row_"):
        module.load_state_dict(state)
    same(filled("bits"), memory, torch.arange(130))


def test_a_state_without_labels_is_missing_them():
    with pytest.raises(RuntimeError, match=r'Missing key.*"row_entries", "row_counts"'):
        sk.PseudoLabelMemory(4, storage="lists").load_state_dict({})


def test_bits_are_kept_where_they_are_small(monkeypatch):
    assert sk.PseudoLabelMemory(130).storage == "bits"
    monkeypatch.setattr(label_memory, "MOST_BITS", 2 * 129 * 32)
    assert sk.PseudoLabelMemory(129).storage == "bits"
    assert sk.PseudoLabelMemory(130).storage == "lists"
    with pytest.raises(ValueError, match="storage must be 'auto', 'bits' or 'lists', got 'dense'"):
        sk.PseudoLabelMemory(4, storage="dense")


def test_a_popular_image_loses_nobody():
    """Every image has image 3 as positive: its column is as long as there are images."""
    n = 700
    memory = sk.PseudoLabelMemory(n, storage="lists")
    label = torch.zeros(1, n, dtype=torch.bool)
    label[0, 3] = True
    for first in range(0, n, 64):
        index = torch.arange(first, min(first + 64, n))
        memory.write_(index, sk.pack_labels(label.expand(len(index), -1).contiguous()))
    assert sk.unpack_labels(memory.columns(torch.tensor([3])), n).all()
    assert memory.pairs()[1].tolist() == [3] * n


@pytest.mark.parametrize("source", ["memory", "feature"])
def test_a_head_trains_alike_with_either(source):
    features = torch.nn.functional.normalize(memory_of("clustered", 90, 12, seed=1), dim=1)
    losses = []
    for storage in ("bits", "lists"):
        head = sk.SNNetHead(90, 12, label_storage=storage, label_source=source, threshold=0.5)
        head.initialize_(features)
        head.momentum = 0.3
        own = []
        for step in range(6):
            index = torch.randint(90, (16,), generator=torch.Generator().manual_seed(step))
            own.append(head(features[index], index).item())
            head.update_(index, features[index])
        losses.append(own)
    assert losses[0] == losses[1]
