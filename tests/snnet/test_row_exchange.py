"""Rows that several processes have go where they are wanted."""

from __future__ import annotations

import pytest
import torch

from snnet.system.processes import ALONE
from snnet.system.row_exchange import moved_rows, rows_in_turn, rows_of_all
from tests.forks import run_processes

# As a command would: in processes that have met. Messages of two rows each, of which one without rows gets three.
PROGRAM = """
import torch
from snnet.system import row_exchange
from snnet.system.processes import several_processes
row_exchange.CHUNK = 2 * 3 * 4
matrix = torch.arange(33.0).view(11, 3)
have, want = [range(0, 4), range(4, 4), range(4, 11)], [range(2, 9), range(6, 11), range(0, 0)]
with several_processes() as processes:
    mine, wanted = have[processes.rank], want[processes.rank]
    rows = matrix[mine.start : mine.stop]
    assert torch.equal(row_exchange.moved_rows(rows, mine, wanted, processes), matrix[wanted.start : wanted.stop])
    whole = row_exchange.rows_of_all(rows, processes)
    assert torch.equal(whole, matrix if processes.is_first else matrix[:0])
    assert processes.everywhere(processes.rank) == [0, 1, 2]
    group = processes.group(torch.device("cpu"), 60)
    turns = list(row_exchange.rows_in_turn(rows, have, 3, processes.rank, group))
    assert [first for first, _ in turns] == [0, 3, 4, 7, 10]
    assert torch.equal(torch.cat([part for _, part in turns]), matrix)
    print(processes.rank)
"""


def test_rows_go_where_they_are_wanted() -> None:
    answers = run_processes(3, "-c", PROGRAM)
    assert [tuple(answer) for answer in answers] == [(0, f"{rank}\n", "") for rank in range(3)]


@pytest.mark.parametrize("wanted", [range(5), range(1, 3), range(0)])
def test_one_process_has_all_rows(wanted: range) -> None:
    matrix = torch.arange(10).view(5, 2)
    assert torch.equal(moved_rows(matrix, range(5), wanted, ALONE), matrix[wanted.start : wanted.stop])
    assert rows_of_all(matrix, ALONE) is matrix
    turns = [(first, part.tolist()) for first, part in rows_in_turn(matrix, [range(5)], 3)]
    assert turns == [(0, [[0, 1], [2, 3], [4, 5]]), (3, [[6, 7], [8, 9]])]
