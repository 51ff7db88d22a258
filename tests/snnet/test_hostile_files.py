"""Files that are made to take all memory, to hang or to print without end: one line each."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snnet.errors import UserError
from snnet.files.archive import check_room
from snnet.files.pickle_scan import scan_pickle
from snnet.files.text import FileFault, quoted, shown
from snnet.models.weights import read_state_dict
from snnet.retrieval.feature_files import load_features
from snnet.training.checkpoint import load_checkpoint
from tests.snnet.tiny_run import contents


def spread() -> torch.Tensor:
    return torch.zeros(1, 1).expand(2_000_000, 1024)


def test_one_number_that_is_spread_over_a_large_shape(tmp_path: Path) -> None:
    torch.save(spread(), tmp_path / "f.pt")
    with pytest.raises(
        UserError, match=r"'features' is \[2000000, 1024\] .* of 8,192,000,000 bytes, .* holds 4$"
    ):
        load_features(tmp_path / "f.pt")
    torch.save({"features": torch.eye(2), "extra": spread()}, tmp_path / "g.pt")
    assert load_features(tmp_path / "g.pt").features.tolist() == [[1.0, 0.0], [0.0, 1.0]]  # it is not needed
    torch.save({"model": {"a": torch.eye(2), "extra": spread()}}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"weights: 'extra' in .*w.pt is \[2000000, 1024\] torch.float32 of 8,192"
    ):
        read_state_dict(str(tmp_path / "w.pt"))


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(b"c__builtin__\nbytearray\n", b"J\xff\xff\xff\x7f", b"\x85R"), "it holds a bytearray"),
        (pickled(b")q\x00", b"h\x00h\x00\x86q\x00" * 40), r"a tuple in it has more than 1,000,000 entries"),
    ],
)
def test_a_pickle_is_scanned_before_it_is_read(content: bytes, message: str) -> None:
    with pytest.raises(FileFault, match=message):
        scan_pickle(io.BytesIO(content))


def test_bytes_that_are_encoded_again_and_again() -> None:
    text = b"X\x04\0\0\0aaaa"
    once = b"c_codecs\nencode\n" + text + b"X\x06\0\0\0latin1\x86R"
    assert scan_pickle(io.BytesIO(pickled(once)))  # how numpy's scalars are pickled
    twice = b"c_codecs\nencode\n" + once + b"X\x03\0\0\0hex\x86R"
    with pytest.raises(FileFault, match="is refused: it encodes bytes"):
        scan_pickle(io.BytesIO(pickled(twice)))


def nested(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value, value)
    return value


def test_nested_values_are_neither_hashed_nor_printed_in_full(tmp_path: Path) -> None:
    state = {"format": "snnet-checkpoint", "version": 1, **contents()}
    torch.save({**state, "config": {"lr": nested(64)}}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        UserError, match=r"checkpoint.pt is refused: a tuple in it has more than 1,000,000 entries"
    ):
        load_checkpoint(tmp_path)
    deep: list[Any] = [1]
    for _ in range(60):
        deep = [deep, deep]
    torch.save({**state, "version": deep}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        UserError, match=r"checkpoint version \[\[\[\[…\], \[…\]\], .*; this package reads 1 and 2$"
    ):
        load_checkpoint(tmp_path)


def test_values_are_shown_short() -> None:
    assert shown("x" * 500) == "x" * 100 + "…" and shown(3.5) == "3.5" and shown([1, "a"]) == "[1, 'a']"
    assert shown(10**5000) == "a whole number of 16,610 bits"
    assert shown(torch.zeros(1, 1).expand(10**6, 10**6)) == "a Tensor"
    assert quoted("x" * 500) == "'" + "x" * 99 + "…" and quoted("a") == "'a'"
    for harm in ("\ud800", "\x1b[2J", "\n", "\u202e"):
        assert shown(f"a{harm}é") == quoted(f"a{harm}é")[1:-1] and shown(f"a{harm}é").isprintable()
    assert shown({"a": list(range(9))}) == "{'a': [0, 1, 2, 3, …]}" and shown(()) == "()"


def npy(shape: str, data: bytes = b"", descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", ["(-1, 4)", "(1000000000000, 4)", "(3, 4)", "(10**9, 4)", "(True, 4)"])
def test_shapes_that_are_not_what_the_file_holds(shape: str, packed: bool, tmp_path: Path) -> None:
    content = npy(shape, bytes(32))
    if packed:
        path = tmp_path / "f.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("features.npy", content)
    else:
        path = tmp_path / "f.npy"
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged or of another format \(|must be real numbers") as caught:
        load_features(path)
    assert "\n" not in str(caught.value)


def test_only_the_arrays_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", npy("(2, 4)", bytes(range(32))))
        archive.writestr("large.npy", npy("(4, 1000000)", bytes(16_000_000)))
    monkeypatch.setattr("snnet.files.archive.free_memory", lambda device: 1_000_000)
    assert load_features(path).features.shape == (2, 4)
    with pytest.raises(
        UserError, match=r"f.npz is not read: 'large' \[4, 1000000\] float32 takes 0.0 GiB of the"
    ):
        load_features(path, key="large")
    torch.save({"features": torch.zeros(600, 1000)}, tmp_path / "f.pt")
    with pytest.raises(UserError, match=r"f.pt is not read: its content takes"):
        load_features(tmp_path / "f.pt")
    check_room(1_000_000, "as much as there is")


def test_identities_are_not_read_where_their_header_does_not_fit(tmp_path: Path) -> None:
    path, features = tmp_path / "f.npz", np.eye(4, dtype=np.float32)
    np.savez_compressed(path, features=features, pids=np.zeros(2**20, np.int8))
    with pytest.raises(UserError, match="pids has 1048576 entries for 4 features"):
        load_features(path)
    np.savez_compressed(path, features=features, pids=np.zeros(4, "U20000"))
    with pytest.warns(UserWarning, match="'pids' is left out: it has entries of 80000 bytes, 65536 at most"):
        assert load_features(path).pids is None
