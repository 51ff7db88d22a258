"""Neighbour lists in state dicts: saved while they follow M, loaded to the bit, or made afresh."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import check_lists

N, D = 90, 8
FIRST, SECOND = clustered_features(N, D), clustered_features(N, D, seed=5)
EVERY = torch.arange(N)
TABLES = ("columns", "values", "counts", "floors", "mirrors")
KEYS = {f"lists.{name}" for name in (*TABLES, "products", "checksums")}

State = dict[str, torch.Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:neighbour lists of")


def used_memory(neighbors: int = 20) -> sk.ExemplarMemory:
    """Its lists have come through updates: in another order, with other floors than fresh ones."""
    memory = sk.ExemplarMemory(N, D, neighbors=neighbors)
    memory.initialize_(FIRST)
    for step in range(6):
        index = torch.arange(step, N, 9)
        memory.predict_labels(index)
        memory.update_(index, normalize(memory.features[index] + SECOND[index]), 0.3)
    return memory


def state_of(memory: sk.ExemplarMemory) -> State:
    return {name: tensor.clone() for name, tensor in memory.state_dict().items()}


def expected_labels(features: torch.Tensor) -> torch.Tensor:
    return reference.mplp(features, EVERY, cache=features @ features.t())


def test_a_state_has_lists_only_while_they_follow():
    memory = sk.ExemplarMemory(N, D, neighbors=20)
    memory.initialize_(FIRST)
    assert set(memory.state_dict()) == {"features"}  # not built
    memory.predict_labels(EVERY[:5])
    assert set(memory.state_dict()) == {"features"} | KEYS
    memory._update_rows_(EVERY[:5], SECOND[:5], 0.5)  # the warm-up
    assert set(memory.state_dict()) == {"features"}
    memory.predict_labels(EVERY[:5])
    memory.features[3] = SECOND[3]  # from outside
    assert set(memory.state_dict()) == {"features"}
    memory.predict_labels(EVERY[:5])
    memory.features.numpy()[70] = SECOND[70].numpy()  # no sign tells, and no call has named the row
    assert set(memory.state_dict()) == {"features"}
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(memory.features))
    memory.drop_lists_()
    assert set(memory.state_dict()) == {"features"}
    assert set(sk.ExemplarMemory(N, D, neighbors=0).state_dict()) == {"features"}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("neighbors", [1, 20, N, 2 * N])
def test_loaded_lists_are_those_that_were_saved(builds, assign, built, neighbors):
    memory = used_memory(neighbors)
    state = state_of(memory)
    restored = sk.ExemplarMemory(N, D, neighbors=neighbors)
    if built:
        restored.initialize_(SECOND)
        restored.build_lists_()
    made = len(builds)
    restored.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=assign)
    for step in range(3):
        index = torch.arange(step, N, 5)
        labels = [one.predict_labels(index) for one in (memory, restored)]
        assert torch.equal(*labels)
        for one in (memory, restored):
            one.update_(index, SECOND[index], 0.5)
    assert len(builds) == made
    after, again = memory.state_dict(), restored.state_dict()
    assert after.keys() == again.keys() == {"features"} | KEYS
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert not torch.equal(after["lists.values"], state["lists.values"])  # the state is a copy


def test_lists_are_a_part_of_a_heads_state(builds):
    head = sk.SNNetHead(N, D, neighbors=20)
    head.initialize_(FIRST)
    head(FIRST[:5], EVERY[:5])
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    assert {name for name in state if "lists" in name} == {f"memory.{key}" for key in KEYS}
    twin = sk.SNNetHead(N, D, neighbors=20)
    twin.load_state_dict(state)
    for index in (EVERY[20:29], EVERY[25:34]):
        losses = [one(SECOND[index], index) for one in (head, twin)]
        for one in (head, twin):
            one.update_(index, SECOND[index])
        assert torch.equal(*losses)
    assert len(builds) == 1
    assert all(
        torch.equal(*pair)
        for pair in zip(head.memory.lists.buffers(), twin.memory.lists.buffers(), strict=True)
    )


def test_states_with_and_without_lists_fit_every_memory(builds):
    memory = used_memory()
    state, bare = state_of(memory), {"features": memory.features.clone()}
    made = len(builds)
    without = sk.ExemplarMemory(N, D, neighbors=0)
    assert without.load_state_dict(state) == ([], [])
    assert torch.equal(without.predict_labels(EVERY), expected_labels(memory.features))
    for given, neighbors in ((bare, 20), (state, 30), (state, N)):
        other = sk.ExemplarMemory(N, D, neighbors=neighbors)
        assert other.load_state_dict(given) == ([], [])
        assert torch.equal(other.predict_labels(EVERY), expected_labels(memory.features))
        assert other.lists.columns.shape == (N, neighbors)
    assert builds[made:] == [(20, N), (30, N), (N, N)]
    assert set(state) == {"features"} | KEYS  # loading takes nothing out of it


def edited(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[State], None]:
    def edit(state: State) -> None:
        made = change(state[name])
        if made is not None:
            state[name] = made

    return edit


def entry(value: float, place: tuple[int, ...] = (0, 0)) -> Callable[[torch.Tensor], None]:
    def set_it(tensor: torch.Tensor) -> None:
        tensor[place[: tensor.dim()]] = value

    return set_it


def swapped(tensor: torch.Tensor) -> None:
    tensor[0, :2] = tensor[0, :2].flip(0)


def mirrored_value(state: State) -> None:
    """The same wrong value on both sides: symmetric, and not what was saved."""
    row, mirror = int(state["lists.columns"][0, 1]), int(state["lists.mirrors"][0, 1])
    state["lists.values"][0, 1] = state["lists.values"][row, mirror] = 0.999


DAMAGE: dict[str, Callable[[State], None]] = {
    "other features": edited("features", entry(0.5)),
    "columns of another type": edited("lists.columns", torch.Tensor.long),
    "values of another type": edited("lists.values", torch.Tensor.double),
    "counts of another type": edited("lists.counts", torch.Tensor.float),
    "products of another type": edited("lists.products", torch.Tensor.float),
    "checksums of another type": edited("lists.checksums", torch.Tensor.float),
    "products of another shape": edited("lists.products", lambda t: t[None]),
    "a column past the last": edited("lists.columns", entry(N)),
    "a column below zero": edited("lists.columns", entry(-2)),
    "another column": edited("lists.columns", entry(7, (50, 2))),
    "a count too large": edited("lists.counts", entry(21)),
    "a count below zero": edited("lists.counts", entry(-1)),
    "a count too small": edited("lists.counts", lambda t: t - 1),
    "a mirror outside": edited("lists.mirrors", entry(20)),
    "mirrors exchanged": edited("lists.mirrors", swapped),
    "columns exchanged": edited("lists.columns", swapped),
    "a value on one side": edited("lists.values", entry(0.75, (0, 1))),
    "a value on both sides": mirrored_value,
    "a value NaN": edited("lists.values", entry(torch.nan, (0, 1))),
    "a floor too low": edited("lists.floors", lambda t: t - 1),
    "a floor NaN": edited("lists.floors", entry(torch.nan)),
    "fewer rows": edited("lists.columns", lambda t: t[:-1]),
    "fewer places": lambda state: state.update(
        {f"lists.{name}": state[f"lists.{name}"][:, :-1] for name in ("columns", "values", "mirrors")}
    ),
    "counts as a column": edited("lists.counts", lambda t: t[:, None]),
    "other checksums": edited("lists.checksums", lambda t: t + 1),
    "fewer checksums": edited("lists.checksums", lambda t: t[:-1]),
    "sparse columns": edited("lists.columns", torch.Tensor.to_sparse),
    "sparse floors": edited("lists.floors", torch.Tensor.to_sparse),
    "sparse checksums": edited("lists.checksums", torch.Tensor.to_sparse),
    "meta values": edited("lists.values", lambda t: t.to("meta")),
    "quantized values": edited("lists.values", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "nested columns": edited("lists.columns", lambda t: torch.nested.nested_tensor(list(t))),
    **{f"no {key}": lambda state, key=key: state.__delitem__(key) for key in sorted(KEYS)},
    "no tensor": edited("lists.counts", lambda t: t.tolist()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch says that nested and quantized tensors are prototypes
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lists_are_not_taken(builds, damage):
    state = state_of(used_memory())
    DAMAGE[damage](state)
    made = len(builds)
    memory = sk.ExemplarMemory(N, D, neighbors=20)
    assert memory.load_state_dict(state) == ([], [])
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(state["features"]))
    assert len(builds) == made + 1
    check_lists(memory.lists.tables, state["features"] @ state["features"].t(), 1e-6)


def test_lists_that_have_other_layouts_are_taken(builds):
    """What a file may come to on its way to another machine: strides, an inference tensor."""
    memory = used_memory()
    with torch.inference_mode():
        state = {
            name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()
            for name, tensor in memory.state_dict().items()
        }
    made = len(builds)
    restored = sk.ExemplarMemory(N, D, neighbors=20)
    restored.load_state_dict(state)
    restored.update_(EVERY[:9], SECOND[:9], 0.5)
    memory.update_(EVERY[:9], SECOND[:9], 0.5)
    assert len(builds) == made
    assert all(torch.equal(*pair) for pair in zip(memory.lists.tables, restored.lists.tables, strict=True))
    assert all(table.is_contiguous() and not table.is_inference() for table in restored.lists.tables)


@pytest.mark.parametrize("strict", [True, False])
def test_keys_of_no_list_are_named(strict):
    state = state_of(used_memory()) | {"lists.places": torch.zeros(3), "lists": torch.zeros(3)}
    memory = sk.ExemplarMemory(N, D, neighbors=20)
    if strict:
        with pytest.raises(RuntimeError, match=r'Unexpected key.* "lists", "lists.places"'):
            memory.load_state_dict(state)
    else:
        assert set(memory.load_state_dict(state, strict=False).unexpected_keys) == {"lists", "lists.places"}


def columns_made(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """An entry for each time that the transpose of label bits is made."""
    made: list[None] = []
    mark = sk.PseudoLabelMemory.mark_written_

    def counted(memory: sk.PseudoLabelMemory) -> None:
        made.append(None)
        mark(memory)

    monkeypatch.setattr(sk.PseudoLabelMemory, "mark_written_", counted)
    return made


def test_what_a_state_leaves_as_it_was_keeps_what_follows_it(builds, monkeypatch):
    """A state of a network alone, or of another number of images, writes no memory."""
    head = sk.SNNetHead(N, D, neighbors=20)
    head.initialize_(FIRST)
    head(FIRST[:5], EVERY[:5])
    columns = columns_made(monkeypatch)
    version, labels = head.memory.version, head.pseudo_labels.to_dense()
    whole = torch.nn.ModuleDict({"net": torch.nn.Linear(2, 2, bias=False), "head": head})
    whole.load_state_dict({"net.weight": torch.zeros(2, 2)}, strict=False)
    head.memory.load_state_dict({}, strict=False)
    with pytest.raises(RuntimeError, match=r"size mismatch for memory\.features"):
        head.load_state_dict(sk.SNNetHead(N + 9, D, neighbors=20, label_storage="bits").state_dict())
    assert (len(builds), columns, head.memory.version) == (1, [], version)
    assert "lists.columns" in head.memory.state_dict()
    assert torch.equal(head.memory.predict_labels(EVERY), expected_labels(FIRST))
    assert torch.equal(sk.unpack_labels(head.pseudo_labels.columns(EVERY), N), labels.t())


@pytest.mark.parametrize("assign", [False, True])
def test_what_is_loaded_into_inference_tensors_is_noticed(assign):
    """They do not count their writes."""
    head = sk.SNNetHead(N, D, neighbors=20)
    head.initialize_(FIRST)
    head(FIRST, EVERY)
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with torch.inference_mode():
        other = sk.SNNetHead(N, D, neighbors=20)
        other.load_state_dict(sk.SNNetHead(N, D, neighbors=20).state_dict(), assign=True)
        other.memory.current_lists(EVERY)
        other.load_state_dict(state, assign=assign)
    assert torch.equal(other.memory.predict_labels(EVERY), expected_labels(FIRST))
    assert torch.equal(other.pseudo_labels.columns(EVERY), head.pseudo_labels.columns(EVERY))
