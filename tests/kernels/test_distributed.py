"""Memories and head of several processes: as one process that gets the global batch."""

from pathlib import Path

import pytest
import torch

import snnet_kernels as sk
from snnet_kernels.distributed import own_rows, rows_of_pieces, whole_state
from tests.kernels.sharded_cases import made_features
from tests.several import run_processes


def in_processes(count: int, *words: object) -> list[str]:
    """What each of ``count`` processes prints, all of which must end well."""
    answers = run_processes(count, "tests.kernels.sharded_cases", [str(word) for word in words])
    for answer in answers:
        assert answer.returncode == 0, answer.stderr
    return [answer.stdout for answer in answers]


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        pytest.param(1, "700 16 4 4", id="one process"),
        pytest.param(2, "1300 16 4 5 warmup", id="warm-up, then labels"),
        pytest.param(3, "1300 16 4 5 exact repeats", id="exact features, repeated images"),
        pytest.param(
            4, "1300 16 5 5 neighbors=8 repeats threshold=0.5", id="lists that do not tell, an empty share"
        ),
        pytest.param(2, "700 16 6 6 repeats neighbors=12", id="full lists"),
        pytest.param(3, "1300 16 2 3 loss_kind=l2", id="l2"),
        pytest.param(2, "1300 16 4 4 label_source=feature min_rank=3", id="labels of the live features"),
        pytest.param(3, "40 16 2 3 neighbors=64", id="fewer images than places"),
        pytest.param(2, "700 16 0 2", id="no samples"),
        pytest.param(2, "1300 16 4 3 hard_negative_ratio=0.5", id="many hard negatives"),
    ],
)
def test_processes_equal_one(processes, words):
    in_processes(processes, "steps", *words.split())


def test_memories_by_themselves_equal_one():
    in_processes(3, "modules", 1300)


def test_state_of_any_number_of_processes_is_that_of_any_other(tmp_path):
    in_processes(3, "state", 1300, tmp_path)
    in_processes(2, "resumed", 1300, tmp_path, 3)
    in_processes(1, "resumed", 1300, tmp_path, 3)
    in_processes(2, "resumed", 1300, tmp_path, 0)  # from the state of one process


@pytest.mark.parametrize(("processes", "words"), [(2, "1300 256 16"), (3, "2600 512 16")])
def test_bytes_sent_and_held_are_those_of_the_formulas(processes, words):
    for line in in_processes(processes, "traffic", *words.split()):
        sent, formula, held, share = (int(word) for word in line.split())
        assert sent == pytest.approx(formula, rel=0.1)
        assert held <= share + 24 * 2600  # 16 bytes of each row of P are in all processes


def test_what_differs_is_one_error_on_all():
    first, second = (out.splitlines() for out in in_processes(2, "refusals", 1300))
    same = [
        "ValueError: the number of samples must be the same on all ranks of the group, got [4, 5]",
        "RuntimeError: the ranks of a group must make the same calls in the same order, got ['update_', 'forward']",
        "ValueError: num_instances must be the same on all ranks of the group, got [1301, 1300]",
    ]
    assert first[:3] == second[:3] == same
    assert first[3] == second[3]
    assert first[3].startswith(
        "ValueError: a digest of the settings of labels and loss must be the same on all ranks"
    )
    refused = "RuntimeError: rank {} of the group refused its arguments of {}: see its own error"
    assert first[4:6] == ["ValueError: index must lie in [0, 1300), got -7", refused.format(1, "initialize_")]
    assert second[4] == refused.format(0, "forward")
    assert second[5].startswith(
        "ValueError: features must have shape [1300, 16], or that of the own rows, [788, 16]"
    )
    assert (
        first[6] == second[6] == "ValueError: training must be the same on all ranks of the group, got [1, 0]"
    )
    assert first[7].startswith("ValueError: momentum must be the same on all ranks of the group, got [0, 0.1")
    assert first[8] == second[8] and "must stay outside of DistributedDataParallel" in first[8]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [1, 511, 512, 513, 1300, 12_936])
def test_own_rows_are_whole_blocks_that_cover_all(n, size):
    shares = [own_rows(n, rank, size) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(n))
    assert all(share.start % 512 == 0 or share.start == n for share in shares)
    blocks = [-(-len(share) // 512) for share in shares]
    assert max(blocks) - min(blocks) <= 1


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
    with pytest.raises(ValueError, match=r"column_entries must be distinct rows in \[0, 9\) of each column"):
        memory.load_state_dict({**state, "column_entries": state["column_entries"].clone().fill_(3)})
    with pytest.raises(NotImplementedError, match=r"gather\(\)"):
        memory.to_dense()
