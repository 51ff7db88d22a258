"""Memories and head of several processes: as one process that gets the global batch."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import snnet_kernels as sk
from snnet_kernels import distributed
from snnet_kernels.distributed import (
    ShardedExemplarMemory,
    ShardedPseudoLabelMemory,
    own_rows,
    rows_of_pieces,
    rows_of_state,
    whole_state,
)
from snnet_kernels.distributed.prediction import OwnRows
from snnet_kernels.distributed.rows import Division
from tests.forks import Answer, run_processes
from tests.kernels.sharded_cases import made_features

# Of each number of processes, which are started once: the cases that they run, and their words.
CASES = {
    3: {
        "exact features, repeated images": "steps 1300 16 4 5 exact repeats",
        "l2": "steps 1300 16 2 3 loss_kind=l2",
        "fewer images than places": "steps 40 16 2 3 neighbors=64",
        "memories by themselves": "modules 1300",
        "pieces": "state 1300 {folder}",
        "traffic": "traffic 2600 512 16 memory",
        "traffic of live features": "traffic 2600 512 16 feature",
    },
    1: {"one process": "steps 700 16 4 4", "goes on from three": "resumed 1300 {folder} 3"},
    2: {
        "warm-up, then labels": "steps 1300 16 4 5 warmup",
        "full lists": "steps 700 16 6 6 repeats neighbors=12",
        "a share of two rows": "steps 514 16 2 3 repeats neighbors=8",
        "labels of the live features": "steps 1300 16 4 4 label_source=feature min_rank=3",
        "no samples": "steps 1300 16 0 2",
        "many hard negatives": "steps 1300 16 4 3 hard_negative_ratio=0.5",
        "goes on from three": "resumed 1300 {folder} 3",
        "goes on from one": "resumed 1300 {folder} 0",
        "what one does alone": "apart 1300",
        "autocast": "autocast 1300 mmcl",
        "autocast, l2": "autocast 1300 l2",
        "traffic": "traffic 1300 256 16 memory",
        "traffic of live features": "traffic 1300 256 16 feature",
        "further collectives": "further 1300",
        "refusals": "refusals 1300",
    },
    4: {
        "lists that do not tell, an empty share": "steps 1300 16 5 5 neighbors=8 repeats threshold=0.5 row_by_row",
        "memories by themselves, an empty share": "modules 1300",
    },
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> Callable[[int, str], list[str]]:
    """What each of a number of processes prints in a case; those that share the tests out start them once for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sharded"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def of_processes(count: int) -> list[Answer]:
        if count < 3:
            of_processes(3)  # whose pieces they go on from
        path = folder / f"{count}.json"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                words = []
                for name, case in CASES[count].items():
                    words += [name, *(word.format(folder=folder) for word in case.split()), "--"]
                answers = run_processes(count, "-m", "tests.kernels.sharded_cases", *words)
                path.write_text(json.dumps([[a.returncode, a.stdout, a.stderr] for a in answers]))
        return [Answer(*answer) for answer in json.loads(path.read_text())]

    def of_case(count: int, name: str) -> list[str]:
        place = list(CASES[count]).index(name)
        told = [answer.stdout.split("--\n")[: len(CASES[count])] for answer in of_processes(count)]
        for answer, parts in zip(of_processes(count), told, strict=True):
            assert answer.returncode == 0 or len(parts) > place + 1, answer.stdout + answer.stderr
        return [parts[place] for parts in told]

    return of_case


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (count, name)
        for count, cases in CASES.items()
        for name, case in cases.items()
        if case.split()[0] not in ("traffic", "further", "refusals")
    ],
)
def test_processes_equal_one(printed, count, name):
    assert printed(count, name) == ["as one\n"] * count


@pytest.mark.parametrize(("name", "collectives"), [("traffic", 8), ("traffic of live features", 10)])
@pytest.mark.parametrize("processes", [2, 3])
def test_bytes_sent_and_held_are_those_of_the_formulas(printed, processes, name, collectives):
    for line in printed(processes, name):
        sent, formula, rounds, held, share = (int(word) for word in line.split())
        assert sent == pytest.approx(formula, rel=0.1)
        assert rounds == collectives
        assert held <= share + 24 * 2600  # 16 bytes of each row of P are in all processes


def test_collectives_that_follow_where_they_must_are_those_of_the_page(printed):
    for lines in printed(2, "further collectives"):
        usual, negatives, other_tensors, twice, thrice = (
            [int(word) for word in line.split()] for line in lines.splitlines()
        )
        assert usual == [6, 2]
        assert negatives == [8, 2]
        assert other_tensors == [6, 5]
        assert twice == [6, 5]  # two, and one of pairs: the last part of a batch has few
        assert thrice == [6, 7]


def test_what_differs_is_one_error_on_all(printed):
    first, second = (out.splitlines() for out in printed(2, "refusals"))
    same = [
        "ValueError: the number of samples must be the same on all ranks of the group, got [4, 5]",
        "RuntimeError: the ranks of a group must make the same calls in the same order, got ['update_', 'forward']",
        "ValueError: num_instances must be the same on all ranks of the group, got [1301, 1300]",
    ]
    assert first[:3] == second[:3] == same
    assert (
        first[3]
        == second[3]
        == "ValueError: threshold must be the same on all ranks of the group, got [0.6, 0.7]"
    )
    refused = "RuntimeError: rank {} of the group refused its arguments of {}: see its own error"
    assert first[4:6] == ["ValueError: index must lie in [0, 1300), got -7", refused.format(1, "initialize_")]
    assert second[4] == refused.format(0, "forward")
    assert second[5].startswith(
        "ValueError: features must have shape [1300, 16], or that of the own rows, [788, 16]"
    )
    differs = "ValueError: {} must be the same on all ranks of the group, got [{}"
    calls = "RuntimeError: the ranks of a group must make the same calls in the same order, got ['{}', '{}']"
    for place, told in {
        6: differs.format("training", "1, 0]"),
        7: differs.format("momentum", "0, 0.1"),
        8: differs.format("threshold", "0.6, 0.7]"),
        10: differs.format("k", "1, 2]"),
        15: differs.format("floor", "0, 0.1]"),
        16: calls.format("renew_lists_", "mark_written_"),
        17: calls.format("forward", "current_lists"),
    }.items():
        assert first[place] == second[place] and first[place].startswith(told)
    for place, call, told in (
        (9, "predict_labels", "min_rank must be an integer of at least 0, got -1"),
        (11, "nearest", "k must be an integer of at least 1, got 0"),
        (12, "nearest", "index must be on the device of memory (cpu), got meta"),
        (13, "rows", "index must be on the device of tables (cpu), got meta"),
        (14, "update_", "similarity must have shape [8, 788], got (8, 3)"),
    ):
        assert first[place] == refused.format(1, call)
        assert second[place].split(": ", 1)[1] == told
    for place, mine, other, rank, call in (
        (18, first, second, 0, "forward"), (19, second, first, 1, "update_")
    ):  # fmt: skip
        assert mine[place].startswith("TypeError: features must be a tensor [B, d], got ")
        assert other[place] == refused.format(rank, call)
    assert first[20] == second[20] == differs.format("to", "0, 1]")
    assert first[21] == refused.format(1, "gather")
    assert second[21] == "ValueError: to must be a rank of the group, 0 to 1, got 2"
    assert first[22] == first[23] == refused.format(1, "forward")
    assert second[22] == "TypeError: threshold must be a number, got NoneType"
    assert second[23] == "ValueError: threshold must be finite, got nan"
    assert first[24] == refused.format(1, "initialize_")
    assert second[24].endswith("as torch.nn.functional.normalize makes them: row 1200 has length 3")
    assert first[25] == second[25] and "must stay outside of DistributedDataParallel" in first[25]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [1, 511, 512, 513, 1300, 12_936])
def test_own_rows_are_whole_blocks_that_cover_all(n, size):
    shares = [own_rows(n, rank, size) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(n))
    assert all(share.start % 512 == 0 or share.start == n for share in shares)
    blocks = [-(-len(share) // 512) for share in shares]
    assert max(blocks) - min(blocks) <= 1


def test_what_receives_does_not_interrupt_what_computes(one_process_group):
    sk.ExemplarMemory(700, 16, process_group=torch.distributed.group.WORLD)
    names = {task.name: (task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    if "gloo_tcp_loop" not in names.values():
        pytest.skip("this torch has another name for the threads by which gloo receives")
    receiving = [int(thread) for thread, name in names.items() if name == "gloo_tcp_loop"]
    assert {os.sched_getscheduler(thread) for thread in receiving} == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_lists_that_were_damaged_are_not_taken(one_process_group):
    group = torch.distributed.group.WORLD
    head = sk.SNNetHead(700, 16, process_group=group)
    head.initialize_(made_features(700, 16, 0, 50, exact=False))
    head(made_features(4, 16, 1, 3, exact=False), torch.arange(4))
    piece = head.state_dict()
    values = piece["memory.lists.values"].clone()
    values[5, 0] += 0.25
    damaged = {**piece, "memory.lists.values": values}
    again = sk.SNNetHead(700, 16, process_group=group)
    again.load_state_dict(damaged)
    assert again.memory.lists.tables is None
    assert "memory.lists.values" not in whole_state([damaged])
    again.load_state_dict(piece)
    assert torch.equal(again.memory.lists.values, piece["memory.lists.values"])
    assert set(rows_of_pieces([piece], range(512, 700))) == set(piece)


@pytest.mark.parametrize(("kind", "options"), [(ShardedExemplarMemory, (4,)), (ShardedPseudoLabelMemory, ())])
def test_a_piece_of_another_process_is_refused(one_process_group, monkeypatch, kind, options):
    def made(rank):
        division = Division(1024, 2, rank)
        monkeypatch.setattr(kind.__module__ + ".Division", lambda *_: division)
        return kind(1024, *options, process_group=torch.distributed.group.WORLD)

    first, second = made(0), made(1)
    if kind is ShardedExemplarMemory:
        first.features += 1
    piece = first.state_dict()
    assert piece["rows"].tolist() == [0, 1024] and second.state_dict()["rows"].tolist() == [512, 1024]
    before = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    refused = r"rows must be \[512, 1024\], the first own row and num_instances, got \[0, 1024\]: this is the piece of"
    with pytest.raises(RuntimeError, match=refused):
        second.load_state_dict(piece)
    assert all(torch.equal(tensor, before[name]) for name, tensor in second.state_dict().items())
    first.load_state_dict(piece)
    with pytest.raises(RuntimeError, match=r"rows must be .*, got 3"):
        first.load_state_dict({**piece, "rows": torch.tensor(3)})
    del piece["rows"]  # as an earlier version wrote it
    second.load_state_dict(piece)


def test_pieces_in_another_order_or_too_few_are_refused():
    head = sk.SNNetHead(1300, 4, neighbors=8)
    pieces = [rows_of_state(head.state_dict(), own_rows(1300, rank, 3)) for rank in range(3)]
    for own, rank in zip(pieces, range(3), strict=True):
        for name in ("memory.rows", "pseudo_labels.rows"):
            assert own[name].tolist() == [own_rows(1300, rank, 3).start, 1300]
    assert whole_state(pieces).keys() == {
        "_momentum", "memory.features", "pseudo_labels.row_entries", "pseudo_labels.row_counts"
    }  # fmt: skip
    wrong = r"pieces must be those of all ranks, in order: memory.rows of piece {} must be \[{}\], got \[{}\]"
    for given, (piece, needed, found) in (
        ([0, 2, 1], (1, "512, 1300", "1024, 1300")),
        ([0, 0, 2], (1, "512, 1300", "0, 1300")),
        ([0, 1], (0, "0, 1024", "0, 1300")),
        ([1, 2], (0, "0, 788", "512, 1300")),
    ):
        message = wrong.format(piece, needed, found)
        with pytest.raises(ValueError, match=message):
            whole_state([pieces[number] for number in given])
        with pytest.raises(ValueError, match=message):
            rows_of_pieces([pieces[number] for number in given], range(512))
    older = [
        {name: tensor for name, tensor in piece.items() if not name.endswith(".rows")} for piece in pieces
    ]
    assert torch.equal(whole_state(older)["memory.features"], head.memory.features)
    assert rows_of_pieces(older, range(512, 1300))["memory.rows"].tolist() == [512, 1300]


def pair_of_heads(n, **options):
    """A head of one process, and one that is divided over a group of one."""
    heads = [
        sk.SNNetHead(n, 16, label_storage="lists", **options),
        sk.SNNetHead(n, 16, process_group=torch.distributed.group.WORLD, **options),
    ]
    for head in heads:
        head.initialize_(made_features(n, 16, 0, 4, exact=False))
    return heads


def test_what_equals_the_threshold_is_no_candidate(one_process_group):
    rows = torch.full((1, 30), 0.7)  # a number whose last bit is set
    rows[0, 8] = 0.75
    for head in pair_of_heads(30):
        labels = head.memory.predict_labels(torch.tensor([3]), 0.7, query_rows=rows)
        assert sk.unpack_labels(labels, 30).nonzero()[:, 1].tolist() == [3, 8]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", float("nan"), "threshold must be finite, got nan"),
        ("threshold", float("inf"), "threshold must be finite, got inf"),
        ("min_rank", -2, "min_rank must be an integer of at least 0, got -2"),
        ("min_rank", 3.5, "min_rank must be an integer, got float"),
        ("loss.delta", -1, "delta must be finite and not negative as a float32, got -1"),
        ("loss.hard_negative_ratio", 2, r"hard_negative_ratio must lie in \[0, 1\], got 2"),
        ("loss.weights", (-1.0, 1.0, 1.0), r"weights must be finite, .* none negative .*, got \[-1.0, 1.0, 1.0\]"),
        ("loss.weights", (float("nan"), 1.0, 1.0), r"weights must be finite, .*, got \[nan, 1.0, 1.0\]"),
        ("loss.weights", (1.0, 0.5), r"weights must be 3 numbers \(main, symmetric, neighbor label\), got 2"),
        ("loss.weights", (1.0,) * 4, "weights must be 1 to 3 numbers, got 4"),
        ("loss.kind", "L2", "kind must be 'mmcl' or 'l2', got 'L2'"),
    ],
)  # fmt: skip
def test_a_head_refuses_a_setting_that_was_changed_to_a_wrong_one(one_process_group, name, value, message):
    features, index = made_features(4, 16, 5, 2, exact=False), torch.arange(4)
    for head in pair_of_heads(60):
        *where, last = name.split(".")
        setattr(head.loss if where else head, last, value)
        with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
            head(features, index)


def test_a_row_written_between_forward_and_update_is_noticed(one_process_group):
    features, index = made_features(4, 16, 5, 2, exact=False), torch.arange(4)
    lists = []
    for head in pair_of_heads(60, neighbors=8):
        head.momentum = 0.5
        head(features, index)
        head.memory.features.data[2] = features[3]
        head.update_(index, features)
        assert not head.memory._lists_follow
        tables = head.memory.current_lists().tables
        row = tables.columns[2, : tables.counts[2]]
        lists.append(dict(zip(row.tolist(), tables.values[2, : len(row)].tolist(), strict=True)))
    assert lists[0] == lists[1]


def test_an_index_written_between_forward_and_update_is_noticed(one_process_group):
    features, index = made_features(4, 16, 5, 2, exact=False), torch.arange(4)
    one, own = pair_of_heads(60)
    for head in (one, own):
        head.momentum = 0.5
        given = index.clone()
        head(features, given)
        given += 30
        head.update_(given, features)
    assert torch.equal(one.memory.features, own.memory.features)
    assert torch.equal(own.memory.features[:4], pair_of_heads(60)[1].memory.features[:4])


def test_a_long_walk_beside_the_lists_takes_few_exchanges(one_process_group, monkeypatch):
    group = torch.distributed.group.WORLD
    centres = torch.eye(16)[torch.arange(300) % 2]
    features = torch.nn.functional.normalize(
        centres + 0.05 * made_features(300, 16, 0, 9, exact=False), dim=1
    )
    memory, one = sk.ExemplarMemory(300, 16, neighbors=2, process_group=group), sk.ExemplarMemory(300, 16)
    for each in (memory, one):
        each.initialize_(features)
    rounds, ask = [], OwnRows._ask
    monkeypatch.setattr(OwnRows, "_ask", lambda *given: rounds.append(1) or ask(*given))
    labels = memory.predict_labels(torch.tensor([0]), 0.6)
    assert torch.equal(labels, one.predict_labels(torch.tensor([0]), 0.6))
    assert int(sk.unpack_labels(labels, 300).sum()) == 150
    assert len(rounds) == 9  # of 1, 2, 4, 8, 16 and 32 candidates


@pytest.mark.parametrize("live", [False, True])
def test_thousands_of_candidates_are_told_before_the_wait(one_process_group, live):
    n = 2048  # all are copies of one image but for the last 40
    features = torch.zeros(n, 2)
    features[:-40, 0] = features[-40:, 1] = 1
    memory = sk.ExemplarMemory(n, 2, neighbors=125, process_group=torch.distributed.group.WORLD)
    memory.initialize_(features)
    index = torch.arange(5)
    with pytest.warns(UserWarning) as caught:
        for _ in range(2):
            memory.predict_labels(index, 0.3, query_rows=memory.similarity(features[index]) if live else None)
            memory.build_lists_()
    (warning,) = caught
    assert str(warning.message).startswith(
        "the first 4 images have 2008 candidates each above the threshold 0.3"
    )
    assert warning.filename == __file__


@pytest.mark.parametrize("source", ["memory", "feature"])
def test_a_step_asks_for_a_label_and_a_neighbour_of_each_sample(one_process_group, source):
    for head in pair_of_heads(60, label_source=source):
        head(made_features(4, 16, 5, 2, exact=False), torch.arange(4))
        assert int(head.memory.lists.asked) == 8


def test_features_that_are_not_finite_leave_no_trace_in_p(one_process_group):
    features, index = made_features(4, 16, 5, 2, exact=False), torch.tensor([3, 4, 3, 7])
    one, own = pair_of_heads(60, label_source="feature", threshold=0.2, min_rank=3)
    for head in (one, own):
        head(features, index)
    before = own.pseudo_labels.rows(index)
    features[2:] = torch.nan
    own(features, index)
    one(features[:2], index[:2])
    assert torch.equal(own.pseudo_labels.gather().to_dense(), one.pseudo_labels.to_dense())
    assert torch.equal(own.pseudo_labels.rows(index)[3], before[3]) and (before[3] != 0).any()


def test_updates_build_no_lists(one_process_group, builds):
    features, index = made_features(4, 16, 5, 2, exact=False), torch.arange(4)
    one, own = pair_of_heads(60)
    for head in (one, own):
        head.momentum = 0.5
        head.memory.update_(index, features, 0.5)
        head.update_(index + 3, features)
        assert head.memory.lists.tables is None
        head.initialize_(made_features(60, 16, 2, 4, exact=False))
        head.memory.update_(index, features, 0.5)
        assert head.memory.lists.tables is None
    assert builds == [] and torch.equal(one.memory.features, own.memory.features)
    found = [head.memory.predict_labels(torch.arange(60), 0.4) for head in (one, own)]
    assert torch.equal(*found)


def test_a_device_that_is_the_default_is_not_that_of_the_lists(one_process_group):
    tables = []
    for head in pair_of_heads(60, neighbors=8):
        with torch.device("meta"):
            head.memory.build_lists_()
        tables.append(head.memory.lists.tables)
    assert torch.equal(tables[0].counts, tables[1].counts)
    assert torch.equal(tables[0].floors, tables[1].floors)
    for k in range(60):
        listed, wanted = (
            dict(zip(part.columns[k].tolist(), part.values[k].tolist(), strict=True)) for part in tables
        )
        assert listed == wanted


@pytest.mark.parametrize("loss_kind", ["mmcl", "l2"])
def test_a_memory_with_nan_makes_the_loss_nan(one_process_group, loss_kind):
    features, index = made_features(4, 16, 5, 2, exact=False), torch.arange(4)
    for head in pair_of_heads(60, loss_kind=loss_kind):
        head.memory.features.data[9] = torch.nan
        head.mark_written_()
        assert head(features, index).isnan()


@pytest.mark.parametrize(("rows", "columns"), [(1, 600), (2, 600), (3, 513), (40, 1), (40, 7), (1, 1)])
@pytest.mark.parametrize("d", [4, 33, 256])
def test_a_product_has_the_same_bits_whatever_is_multiplied_beside_it(rows, columns, d):
    features, memory = made_features(40, d, 1, 9, exact=False), made_features(1100, d, 2, 9, exact=False)
    whole = sk.memory_similarity(features, memory)
    part = sk.memory_similarity(features[:rows], memory[:columns])
    assert (
        torch.equal(part, whole[:rows, :columns]) and not part._is_view()
    )  # one could not be written in place
    turned = sk.memory_similarity(memory[:columns], features[:rows])
    assert torch.equal(turned, whole[:rows, :columns].t())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda group: sk.ExemplarMemory(9, 4, neighbors=0, process_group=group),
            "neighbors must be at least 1",
        ),
        (
            lambda group: sk.PseudoLabelMemory(9, storage="bits", process_group=group),
            "storage must be 'auto' or",
        ),
    ],
)
def test_what_cannot_be_divided_is_told(one_process_group, make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.distributed.group.WORLD)


def test_state_names_the_own_columns(one_process_group, tmp_path: Path):
    memory = sk.PseudoLabelMemory(9, process_group=torch.distributed.group.WORLD)
    memory.write_(torch.tensor([2]), sk.pack_labels(torch.eye(9)[[2]].bool() | torch.eye(9)[[5]].bool()))
    state = memory.state_dict()
    assert state["column_entries"].tolist() == [0, 1, 2, 3, 4, 2, 5, 6, 7, 8]
    assert state["column_counts"].tolist() == [1, 1, 1, 1, 1, 2, 1, 1, 1]
    with pytest.raises(
        RuntimeError, match=r"column_entries must be distinct rows in \[0, 9\) of each column"
    ):
        memory.load_state_dict({**state, "column_entries": state["column_entries"].clone().fill_(3)})
    with pytest.raises(NotImplementedError, match=r"gather\(\)"):
        memory.to_dense()


CLASSES = [
    (sk.SNNetHead, distributed.ShardedHead, (9, 4)),
    (sk.ExemplarMemory, distributed.ShardedExemplarMemory, (9, 4)),
    (sk.PseudoLabelMemory, distributed.ShardedPseudoLabelMemory, (9,)),
]


@pytest.mark.parametrize(("base", "sharded", "shape"), CLASSES, ids=lambda one: getattr(one, "__name__", ""))
def test_subclasses_are_sharded_or_refuse_a_group(one_process_group, base, sharded, shape):
    group = torch.distributed.group.WORLD
    mine = type("Mine", (base,), {})
    inside = type(
        "Inside", (base,), {"__init__": lambda self: base.__init__(self, *shape, process_group=group)}
    )
    for make in (lambda: mine(*shape, process_group=group), inside):
        with pytest.raises(TypeError) as caught:
            make()
        assert str(caught.value).endswith(
            f" must be a subclass of snnet_kernels.distributed.{sharded.__name__} to take a process_group"
        )
    assert not hasattr(mine(*shape), "exchange")
    ours = type("Ours", (sharded,), {})
    made = ours(*shape, process_group=group)
    assert type(made) is ours and made.exchange.group is group
    assert type(base(*shape, process_group=group)) is sharded
    with pytest.raises(
        TypeError, match=r"process_group must be a torch\.distributed\.ProcessGroup .*, got None"
    ):
        ours(*shape)
