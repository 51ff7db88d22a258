"""ExemplarMemory: lists that follow M, training with them, when they are made afresh, what fills the memory."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.nn.functional import normalize

import snnet_kernels as sk
from snnet_kernels import reference
from snnet_kernels.memory_lists import MemoryLists
from snnet_kernels.testing import clustered_features
from tests.kernels.list_checks import check_lists

N, D = 80, 8
FIRST, SECOND = clustered_features(N, D), clustered_features(N, D, seed=5)
EVERY = torch.arange(N)
COLLAPSED = normalize(torch.ones(N, D) + 0.01 * torch.randn(N, D, generator=torch.Generator().manual_seed(0)))


def filled(features: torch.Tensor = FIRST, **options) -> sk.ExemplarMemory:
    memory = sk.ExemplarMemory(N, D, **{"neighbors": 20, **options})
    memory.initialize_(features)
    return memory


def expected_labels(features: torch.Tensor, index: torch.Tensor = EVERY) -> torch.Tensor:
    return reference.mplp(features, index, cache=features @ features.t())


@pytest.mark.parametrize("source", ["memory", "feature"])
@pytest.mark.parametrize("neighbors", [6, 40, 300])
@pytest.mark.filterwarnings("ignore:neighbour lists of 6 places")
def test_a_head_with_lists_trains_as_one_with_all_similarities(source, neighbors):
    """The twin keeps none; what it should predict is read from all of S."""
    n, d, batch = 150, 16, 12
    features = clustered_features(n, d)
    heads = [sk.SNNetHead(n, d, label_source=source, neighbors=places) for places in (0, neighbors)]
    for head in heads:
        head.initialize_(features)
        head.momentum = 0.3
    generator = torch.Generator().manual_seed(0)
    for epoch in range(3):
        for head in heads:
            head.warmup = epoch == 0
        for index in torch.randperm(n, generator=generator).split(batch):
            live = normalize(features[index] + 0.2 * torch.randn(len(index), d, generator=generator), dim=1)
            memory = heads[0].memory.features.clone()
            losses = []
            for head in heads:
                losses.append(head(live, index))
                head.update_(index, live)
            assert torch.equal(heads[0]._label_sets[0], heads[1]._label_sets[0])
            if epoch:
                rows = live @ memory.t() if source == "feature" else None
                wanted = reference.mplp(memory, index, cache=memory @ memory.t(), query_rows=rows)
                assert torch.equal(heads[1]._label_sets[0], wanted)
            assert torch.allclose(*losses, atol=1e-5)
    assert torch.equal(heads[0].pseudo_labels.row_bits, heads[1].pseudo_labels.row_bits)
    assert torch.equal(heads[0].memory.features, heads[1].memory.features)
    if neighbors >= n:
        assert int(heads[1].memory.lists.products) == 0


@pytest.mark.filterwarnings("ignore:neighbour lists of 20 places")
def test_lists_follow_what_they_are_made_of():
    memory = filled()
    memory.predict_labels(EVERY)
    memory.features = SECOND.clone()
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(SECOND))
    memory.features.copy_(FIRST)
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(FIRST))
    memory.features.numpy()[:] = SECOND.numpy()  # counts no write: rows that are named tell
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(SECOND))
    memory.load_state_dict({"features": FIRST}, assign=True)
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(FIRST))
    check_lists(memory.lists.tables, FIRST @ FIRST.t(), 1e-6)


def test_a_bank_that_no_label_is_asked_of_has_no_lists(builds):
    memory = sk.ExemplarMemory(N, D, neighbors=20)
    for features in (FIRST, SECOND):
        memory.initialize_(features)
        memory.update_(EVERY[:9], FIRST[9:18], 0.5)
        memory.similarity(FIRST[:4])
        memory.renew_lists_()
    assert memory.lists.tables is None and builds == []
    expected = SECOND.clone()
    sk.update_memory_(expected, EVERY[:9], FIRST[9:18], 0.5)
    assert torch.equal(memory.features, expected)
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(expected))


def test_lists_of_another_memory_are_left_until_a_label_is_asked_for(builds):
    """A memory that goes on from a state, which has no such lists, has the same lists then."""
    memory = filled(neighbors=40)
    memory.predict_labels(EVERY[:5])
    memory.features = SECOND.clone()
    resumed = sk.ExemplarMemory(N, D, neighbors=40)
    resumed.load_state_dict(memory.state_dict())
    for one in (memory, resumed):
        one.update_(EVERY[:9], FIRST[:9], 0.5)
    assert len(builds) == 1
    for one in (memory, resumed):
        assert torch.equal(one.predict_labels(EVERY), expected_labels(one.features))
        one.update_(EVERY[9:18], FIRST[:9], 0.5)
    assert len(builds) == 3
    assert all(torch.equal(*pair) for pair in zip(memory.buffers(), resumed.buffers(), strict=True))


def test_lists_that_are_built_are_rebuilt_where_the_memory_is_filled(builds):
    """A captured CUDA graph reads them without a call."""
    memory = filled(neighbors=40)
    memory.build_lists_()
    memory.initialize_(SECOND)
    assert len(builds) == 2
    check_lists(memory.lists.tables, SECOND @ SECOND.t(), 1e-6)


def test_lists_stay_in_their_place():
    memory = filled()
    memory.build_lists_()
    before = [part.data_ptr() for part in memory.lists.tables]
    for epoch in range(3):
        index = torch.arange(epoch, N, 7)
        memory.update_(index, clustered_features(len(index), D, seed=epoch), 0.2)
        memory.build_lists_()
        memory.initialize_(SECOND)
    assert [part.data_ptr() for part in memory.lists.tables] == before
    memory.drop_lists_()
    assert memory.lists.tables is None and not list(memory.lists.buffers())
    assert torch.equal(memory.nearest(EVERY)[0], reference.nearest_neighbors(SECOND, EVERY)[0])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "file"]
)
def test_copies_have_lists_of_their_own(copied):
    memory = filled()
    memory.build_lists_()
    other = copied(memory)
    other.update_(EVERY[:9], SECOND[:9], 0.0)
    assert torch.equal(memory.features, FIRST)
    check_lists(memory.current_lists(EVERY).tables, FIRST @ FIRST.t(), 1e-6)
    check_lists(other.current_lists(EVERY).tables, other.features @ other.features.t(), 1e-6)


def test_labels_in_inference_mode():
    memory = filled(neighbors=40)
    with torch.inference_mode():
        assert torch.equal(memory.predict_labels(EVERY), expected_labels(FIRST))
    assert not any(buffer.is_inference() for buffer in memory.lists.buffers())
    memory.update_(EVERY[:9], SECOND[:9], 0.5)
    check_lists(memory.lists.tables, memory.features @ memory.features.t(), 1e-6)


@pytest.mark.filterwarnings("ignore:neighbour lists of 20 places")
@pytest.mark.parametrize("written", range(1, 7))
def test_an_interrupted_build_leaves_no_half_new_lists(written, monkeypatch):
    """The lists that it overwrites have come through updates: their places are others than those of new ones."""
    memory = filled()
    memory.build_lists_()
    for index in EVERY.split(10):
        memory.update_(index, COLLAPSED[index], 0.7)
    places = [*memory.lists.tables, memory.lists.products]
    copy_, seen = torch.Tensor.copy_, []

    def interrupted(target: torch.Tensor, *given: object) -> torch.Tensor:
        done = copy_(target, *given)
        if any(target is place for place in places):
            seen.append(target)
            if len(seen) == written:
                raise KeyboardInterrupt
        return done

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory.build_lists_()
    monkeypatch.undo()
    assert "lists.columns" not in memory.state_dict()
    assert torch.equal(memory.predict_labels(EVERY), expected_labels(memory.features))
    check_lists(memory.lists.tables, memory.features @ memory.features.t(), 1e-6)
    assert memory.lists.columns is places[0]


def test_lists_are_seen_when_all_of_them_are_there(monkeypatch):
    """By another thread, for instance, that asks for labels too."""
    memory = filled()
    lists, seen = memory.lists, []
    set_attribute = MemoryLists.__setattr__

    def watched(module: MemoryLists, name: str, value: object) -> None:
        set_attribute(module, name, value)
        seen.append(name)
        assert (module.tables is None) is (name != "columns")

    monkeypatch.setattr(MemoryLists, "__setattr__", watched)
    memory.build_lists_()
    assert {*lists.parts, "products", "asked"} <= set(seen) and seen[-1] == "columns"


@pytest.mark.parametrize("floor", [-1.0, 0.0, 0.3, 0.59])
@pytest.mark.filterwarnings("ignore:neighbour lists of")
def test_a_floor_below_the_threshold_changes_no_label(floor):
    for neighbors in (1, 20, N):
        memory = filled(neighbors=neighbors, floor=floor)
        assert torch.equal(memory.predict_labels(EVERY), expected_labels(FIRST))
        lowest = -torch.inf if neighbors == N else torch.tensor(floor)
        assert (memory.lists.floors >= lowest).all()


def test_a_head_lists_down_to_below_its_threshold():
    head = sk.SNNetHead(N, D, threshold=0.5, neighbors=40)
    assert head.memory.lists.floor == pytest.approx(0.2)
    head.initialize_(FIRST)
    assert (head.memory.current_lists().floors >= torch.tensor(head.memory.lists.floor)).all()


@pytest.mark.parametrize(("products", "made"), [(0, 0), (N // 2, 0), (N // 2 + 1, 1), (10 * N, 1)])
@pytest.mark.filterwarnings("ignore:neighbour lists of 20 places")
def test_lists_are_renewed_where_products_cost_more(builds, products, made):
    memory = filled()
    memory.build_lists_()
    memory.lists.products.fill_(products)
    memory.renew_lists_()
    assert len(builds) == 1 + made
    assert int(memory.lists.products) == (0 if made else products)


def test_lists_that_are_not_there_are_not_renewed(builds):
    for memory in (filled(), filled(neighbors=0)):
        memory.renew_lists_()
    assert builds == []


def test_products_that_lists_leave_over_are_counted():
    memory = filled(COLLAPSED, neighbors=4)
    assert torch.equal(memory.predict_labels(EVERY[:9]), expected_labels(COLLAPSED, EVERY[:9]))
    first = int(memory.lists.products)
    assert first >= 9  # the rows themselves
    memory.nearest(EVERY[:9])
    assert first <= int(memory.lists.products) <= first + 9
    memory.build_lists_()
    assert int(memory.lists.products) == 0
    full = filled(COLLAPSED, neighbors=N)
    full.predict_labels(EVERY)
    assert int(full.lists.products) == 0


def test_slow_lists_are_told_once_with_places_and_remedy():
    memory = filled(COLLAPSED, neighbors=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memory.predict_labels(EVERY[:1])  # a few products: no word
        told = len(caught)
        for _ in range(4):
            memory.predict_labels(EVERY)
        memory.renew_lists_()
        memory.predict_labels(EVERY)
    assert told == 0 or int(memory.lists.products) > N
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("neighbour lists of 4 places are too short for many rows: ")
    assert int(text.split(": ")[1].split()[0]) > N
    assert (
        "Give more places (neighbors=... of a head or memory)" in text
        and "renew_lists_() once an epoch" in text
    )


def test_lists_that_start_above_the_threshold_are_told_once_and_are_not_worn(builds):
    memory = filled(neighbors=N // 2, floor=0.5)
    expected = reference.mplp(FIRST, EVERY, 0.3, cache=FIRST @ FIRST.t())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            assert torch.equal(memory.predict_labels(EVERY, 0.3), expected)
            memory.nearest(EVERY[:2])
        memory.renew_lists_()
    assert len(builds) == 1 and int(memory.lists.products) > N
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("neighbour lists start at 0.5, above the threshold 0.3: ")
    assert text.endswith(
        "Give a floor below the threshold (floor=...; that of a head follows from the threshold that it is made with)"
    )
    memory.predict_labels(EVERY[:2], 0.6)  # here lists tell: a build would help
    assert memory.lists.are_worn()


def test_lists_of_whole_rows_start_nowhere(builds):
    memory = filled(neighbors=N, floor=0.5)
    memory.predict_labels(EVERY, 0.3)
    memory.lists.products.fill_(N)
    assert memory.lists.are_worn()


@pytest.mark.parametrize("live", [False, True])
def test_a_threshold_below_thousands_of_similarities_is_told_before_the_wait(live):
    n = 2048  # all are copies of one image but for the last 40: each of the others has 2008 candidates
    features = torch.zeros(n, 2)
    features[:-40, 0] = features[-40:, 1] = 1
    memory = sk.ExemplarMemory(n, 2, neighbors=125)
    memory.initialize_(features)
    index = torch.arange(5)
    rows = {"query_rows": memory.similarity(features[index])} if live else {}
    with pytest.warns(UserWarning) as caught:
        memory.predict_labels(index, 0.3, **rows)
        memory.build_lists_()
        memory.predict_labels(index, 0.3, **rows)
    (text,) = (str(warning.message) for warning in caught)
    expected = (
        "the first 4 images have 2008 candidates each above the threshold 0.3, and neighbour lists of 125 places: a "
        "label may take a product of a row for each candidate, which is right but slow. Raise the threshold"
    )
    assert text == expected


@pytest.mark.parametrize(
    ("products", "asked", "told"),
    [
        (N + 1, 2 * N + 1, 1),  # more than half
        (N + 1, 2 * N + 2, 0),  # half
        (N, 1, 0),  # no more than what two builds multiply
        (100 * N, 3200 * N, 0),  # 2 rows a step of 32 labels and 32 neighbours: long, and never slow
        (100 * N, 199 * N, 1),
    ],
)
def test_lists_are_told_to_be_slow_where_that_is_much_of_the_work(products, asked, told):
    memory = filled()
    memory.build_lists_()
    memory.lists.products.fill_(products)
    memory.lists.asked.fill_(asked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert memory.lists.are_worn()
    assert [str(warning.message).split(": ")[1].split(",")[0] for warning in caught] == [
        f"{products} products of a row were made beside them for {asked} labels and neighbours"
    ] * told


def test_labels_and_neighbors_asked_for_are_counted_from_a_build_or_a_load_on():
    memory = filled(COLLAPSED, neighbors=4)
    memory.predict_labels(EVERY[:9])
    memory.nearest(EVERY[:5])
    assert int(memory.lists.asked) == 14
    made = int(memory.lists.products)
    loaded = filled(COLLAPSED, neighbors=4)
    loaded.load_state_dict(memory.state_dict())
    assert (int(loaded.lists.products), int(loaded.lists.asked)) == (made, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of those that were loaded nobody knows what they were made for
        loaded.lists.products.fill_(made + N)
        loaded.lists.are_worn()
    with pytest.warns(UserWarning, match=f": {N + 1} products of a row were made beside them for 0 labels"):
        loaded.lists.products.fill_(made + N + 1)
        loaded.lists.are_worn()
    memory.build_lists_()
    assert (int(memory.lists.products), int(memory.lists.asked)) == (0, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows * 100, ValueError, "features must have rows of length 1 .*: row 0 has length 100"),
        (lambda rows: rows.index_fill(0, torch.tensor([3]), torch.nan), ValueError, "row 3 has length nan"),
        (lambda rows: (rows * 10).long(), TypeError, "features must be a floating point tensor"),
        (lambda rows: rows[:-1], ValueError, rf"features must have shape \[{N}, {D}\]"),
    ],
)
def test_only_normalized_features_fill_the_memory(change, error, message):
    head = sk.SNNetHead(N, D)
    head.initialize_(SECOND)
    with pytest.raises(error, match=message):
        head.initialize_(change(FIRST.clone()))
    assert torch.equal(head.memory.features, SECOND)
    rows = FIRST.clone()
    rows[2] = 0
    head.initialize_(rows.half())
    assert torch.equal(head.memory.features, rows.half().float())


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"neighbors": -1}, ValueError, "neighbors must be an integer of at least 0, got -1"),
    ({"neighbors": 2.0}, TypeError, "neighbors must be an integer, got float"),
    ({"neighbors": 2**31}, ValueError, r"neighbors must be below 2\^31"),
    ({"floor": float("nan")}, ValueError, "floor must be finite, got nan"),
    ({"floor": None}, TypeError, "floor must be a number, got NoneType"),
    ({"cache": True}, TypeError, "unexpected keyword argument 'cache'"),
])  # fmt: skip
def test_bad_settings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        sk.ExemplarMemory(10, 4, **options)
