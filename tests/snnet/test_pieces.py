"""The memories of a checkpoint in pieces: read in any division, and refused in one line where they are not its own."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from snnet.errors import UserError
from snnet.training.checkpoint import LISTS, load_checkpoint, load_state, rng_state, save_checkpoint
from snnet.training.pieces import clear_pieces, load_whole_checkpoint, memory_state, write_pieces
from snnet_kernels import SNNetHead
from snnet_kernels.distributed import own_rows, rows_of_state

N, D = 1100, 32  # of blocks of 512 rows three, the last of them short


@dataclass
class Rank:
    """One of several processes, alone."""

    rank: int
    count: int

    def gathered(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture(scope="module")
def head() -> SNNetHead:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(N, D, generator=generator), dim=1)
    head = SNNetHead(N, D, neighbors=64)
    head.initialize_(features)
    index = torch.arange(0, N, 9)
    head(features[index], index)
    head.momentum = 0.25
    return head


def save(folder: Path, head: SNNetHead, count: int, epochs: int = 1) -> Path:
    """A checkpoint as ``count`` processes write it."""
    state, pieces = head.state_dict(), []
    for rank in range(count):
        rows = own_rows(N, rank, count)
        found = write_pieces(folder, epochs, rows, rows_of_state(state, rows), Rank(rank, count))  # type: ignore[arg-type]
        pieces += found or []
    save_checkpoint(
        folder / "checkpoint.pt", pieces=pieces, model={}, optimizer={}, head={}, config={}, rng=rng_state(), before={},
        metrics=[{"epoch": epoch} for epoch in range(epochs)], images=7, torch="2.14",
    )  # fmt: skip
    clear_pieces(folder, pieces)
    return folder / "checkpoint.pt"


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("count", "others"), [(1, 4), (4, 3), (3, 1)])
def test_pieces_of_any_number_of_processes_are_those_of_another(
    count: int, others: int, head: SNNetHead, tmp_path: Path
) -> None:
    path = save(tmp_path, head, count)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"checkpoint-1-{rank}-of-{count}.safetensors" for rank in range(count)), "checkpoint.pt"
    ]  # fmt: skip
    checkpoint = load_checkpoint(tmp_path)
    for rank in range(others):
        rows = own_rows(N, rank, others)
        assert_same(memory_state(checkpoint, path, rows), rows_of_state(head.state_dict(), rows))
    again = SNNetHead(N, D, neighbors=64)
    load_state(again, load_whole_checkpoint(tmp_path)["head"], path, "memory", LISTS)
    assert_same(again.state_dict(), head.state_dict())


def test_a_folder_whose_name_is_no_utf8(head: SNNetHead, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xff")
    folder.mkdir()
    path = save(folder, head, 2)
    assert_same(
        memory_state(load_checkpoint(folder), path, range(N)), rows_of_state(head.state_dict(), range(N))
    )


def test_a_checkpoint_of_one_process_is_read_by_several(head: SNNetHead, tmp_path: Path) -> None:
    state = head.state_dict()
    for rank in range(3):
        rows = own_rows(N, rank, 3)
        assert_same(
            memory_state({"head": state}, tmp_path / "checkpoint.pt", rows), rows_of_state(state, rows)
        )
    assert_same(memory_state({"head": state}, tmp_path / "checkpoint.pt"), state)
    with pytest.raises(UserError, match=r"checkpoint.pt has no whole memories: 'memory.features'$"):
        memory_state({"head": {}}, tmp_path / "checkpoint.pt", range(5))
    bits = state["pseudo_labels.row_bits"]
    for wrong, message in ((bits[:, :64], "must have shape"), (bits.bool(), "must be torch.uint8")):
        with pytest.raises(UserError, match=f"checkpoint.pt has no whole memories: row_bits {message}"):
            damaged = {**state, "pseudo_labels.row_bits": wrong.contiguous()}
            memory_state({"head": damaged}, tmp_path / "checkpoint.pt", own_rows(N, 1, 3))


def test_pieces_are_deleted_when_a_newer_checkpoint_has_its_own(head: SNNetHead, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-of-mine.safetensors").write_bytes(b"the reader's")
    save(tmp_path, head, 3)
    save(tmp_path, head, 2, epochs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2-0-of-2.safetensors", "checkpoint-2-1-of-2.safetensors", "checkpoint-of-mine.safetensors",
        "checkpoint.pt",
    ]  # fmt: skip
    clear_pieces(tmp_path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-of-mine.safetensors",
        "checkpoint.pt",
    ]


def test_a_checkpoint_keeps_its_pieces_until_another_of_as_many_epochs_is_in_place(
    head: SNNetHead, tmp_path: Path
) -> None:
    path = save(tmp_path, head, 2)
    before = load_whole_checkpoint(path)["head"]
    rows = own_rows(N, 0, 2)
    other = {name: tensor + 1 for name, tensor in rows_of_state(head.state_dict(), rows).items()}
    write_pieces(tmp_path, 1, rows, other, Rank(0, 2))  # type: ignore[arg-type]
    assert_same(load_whole_checkpoint(path)["head"], before)
    save(tmp_path, head, 2)
    assert_same(load_whole_checkpoint(path)["head"], before)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint-1-0-of-2-3.safetensors", "checkpoint-1-1-of-2-2.safetensors", "checkpoint.pt",
    ]  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_whole_checkpoint(path)
    return str(caught.value).replace(str(path.parent), "")


def test_a_piece_that_is_gone_damaged_or_of_another_checkpoint_is_named(
    head: SNNetHead, tmp_path: Path
) -> None:
    (tmp_path / "older").mkdir()
    save(tmp_path / "older", head, 2, epochs=1)
    head.momentum = 0.5
    path = save(tmp_path, head, 2, epochs=1)
    name = "checkpoint-1-1-of-2.safetensors"
    piece = tmp_path / name
    content = bytearray(piece.read_bytes())
    shutil.copy(tmp_path / "older" / name, piece)
    assert refusal(path) == f"/{name} is not the piece that /checkpoint.pt was written with"
    content[-1] ^= 1
    piece.write_bytes(content)
    assert refusal(path) == f"/{name} is damaged (its content has another checksum than was written with it)"
    piece.write_bytes(content[:40])
    assert refusal(path).startswith(f"/{name} is damaged (")
    piece.unlink()
    assert refusal(path) == (f"/checkpoint.pt needs /{name}, which is not there: they belong together")


@pytest.mark.parametrize(
    "pieces",
    [
        [["../checkpoint-1-0-of-1.safetensors", 0, N, "0"]],
        [["checkpoint-1-0-of-1.safetensors", 1, N, "0"]],
        [["checkpoint-1-0-of-1.safetensors", 0, -1, "0"]],
        [["checkpoint-1-0-of-1.safetensors", 0, N]],
        ["checkpoint-1-0-of-1.safetensors"],
    ],
)
def test_what_names_no_pieces_is_refused(pieces: list[Any], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"checkpoint.pt is not a whole checkpoint: its piece '.*' is damaged$"
    ):
        memory_state({"pieces": pieces}, tmp_path / "checkpoint.pt")
