"""Files that are damaged, or hold what they should not: one line each, and never other values."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from snnet.errors import UserError
from snnet.files import safetensors_files
from snnet.files.safetensors_files import MOST_HEADER_BYTES, write_with_checksum
from snnet.models.weights import read_state_dict
from snnet.retrieval.feature_files import FeatureSet, load_features, save_features
from snnet.retrieval.sparse_labels import load_labels, predict_sparse_labels, save_labels
from snnet.training.checkpoint import check_measurements, load_checkpoint, save_checkpoint
from snnet.training.metric_checks import check_record
from tests.snnet.tiny_run import contents

MARK = b"\x01\x23\x45\x67\x89\xab\xcd\xef"  # a float64, or two float32, that the written values hold
EPOCH = {"epoch": 0, "loss": 1.0, "seconds": 2.0}
BEFORE = {
    "rank1": 0.5, "rank5": 0.5, "rank10": 0.5, "mAP": 0.25, "mINP": 0.25, "queries": 4, "queries_without_match": 0,
    "average_precision": "step",
}  # fmt: skip


def write_checkpoint(path: Path) -> None:
    state = contents()
    state["model"] = {"weight": torch.frombuffer(bytearray(MARK), dtype=torch.float32)}
    save_checkpoint(path, **state)


def write_features(path: Path) -> None:
    values = np.frombuffer(MARK, dtype=np.float32).reshape(1, 2)
    save_features(path, FeatureSet(values, ("a.jpg",), np.array([3]), metadata={"arch": "x"}))


def write_weights(path: Path) -> None:
    state = {"weight": torch.frombuffer(bytearray(MARK), dtype=torch.float32)}
    with open(path, "wb") as file:
        write_with_checksum(state, file)


def write_labels(path: Path) -> None:
    save_labels(path, predict_sparse_labels(torch.eye(3)))


def load_no_row(path: Path) -> FeatureSet:
    return load_features(path, rows=lambda _: range(0))


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], bytes]] = {
    "checkpoint.pt": (write_checkpoint, load_checkpoint, MARK),
    "features.npz": (write_features, load_features, MARK),
    "features.safetensors": (write_features, load_features, MARK),
    "rows.npz": (write_features, load_no_row, MARK),
    "rows.safetensors": (write_features, load_no_row, MARK),
    "weights.safetensors": (write_weights, lambda path: read_state_dict(str(path)), MARK),
    "labels.npz": (write_labels, load_labels, np.array([0, 1, 2, 3]).tobytes()),
}


@pytest.mark.parametrize("name", KINDS)
def test_one_bit_of_a_value_is_noticed_in_what_this_package_writes(name: str, tmp_path: Path) -> None:
    write, read, mark = KINDS[name]
    path = tmp_path / name
    write(path)
    read(path)
    whole = path.read_bytes()
    place = whole.index(mark)
    for bit in (0, 21, 62):
        broken = bytearray(whole)
        broken[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(
            UserError, match=r"Bad CRC-32|has another checksum than was written with it"
        ) as caught:
            read(path)
        assert str(caught.value).count(name) >= 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["features.npz", "features.safetensors"])
def test_a_flip_of_a_header_is_noticed_or_changes_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_features(path)
    whole, wanted = path.read_bytes(), load_features(path)
    refused = 0
    for place in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        try:
            found = load_features(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found.features.tobytes() == wanted.features.tobytes()
            assert (found.names, found.metadata, found.splits) == (wanted.names, wanted.metadata, None)
            assert found.pids is not None and found.pids.tolist() == [3]
    assert refused > 0.6 * len(whole) / 7  # what is left are times, versions and the like


def test_the_longest_header_is_written_and_a_longer_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for length, fault in ((MOST_HEADER_BYTES, "invalid header length"), (MOST_HEADER_BYTES + 1, "too large")):
        with pytest.raises(safetensors.SafetensorError, match=fault):
            safetensors.torch.load(length.to_bytes(8, "little"))
    content = {"weight": torch.ones(2)}
    monkeypatch.setattr(safetensors_files, "MOST_HEADER_BYTES", 1000)
    write_with_checksum(content, file := io.BytesIO(), {"text": ""})
    room = 1000 - len(file.getvalue()[8:-8].rstrip())
    write_with_checksum(content, file := io.BytesIO(), {"text": "a" * room})
    assert file.getvalue()[:8] == (1000).to_bytes(8, "little")
    assert safetensors.torch.load(file.getvalue())["weight"].tolist() == [1.0, 1.0]
    with pytest.raises(OSError, match=r"a header of .safetensors has at most 1,000 bytes, got 1,008"):
        write_with_checksum(content, file := io.BytesIO(), {"text": "a" * (room + 1)})
    assert file.getvalue() == b""


def test_tensors_of_every_kind_are_written_as_safetensors_reads_them() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for dtype in safetensors_files._CODES
    }
    tensors |= {
        "turned": torch.randn(4, 6, generator=generator).t(),
        "number": torch.tensor(7),
        "nothing": torch.zeros(0, 3),
        "weight": torch.nn.Parameter(torch.ones(2)),
        "ä": torch.arange(8)[::2],
    }
    write_with_checksum(tensors, file := io.BytesIO(), {"text": "ü"})
    content = file.getvalue()
    found = safetensors.torch.load(content)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__").keys() == {"text", "crc32"} and length % 8 == 0
    assert all(entry["data_offsets"][0] % tensors[name].element_size() == 0 for name, entry in header.items())
    # The data of the same type are as safetensors itself writes them.
    alike = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int64}
    write_with_checksum(alike, file := io.BytesIO())
    own = safetensors.torch.save({name: tensor.contiguous() for name, tensor in alike.items()})
    data = [part[8 + int.from_bytes(part[:8], "little") :] for part in (file.getvalue(), own)]
    assert data[0] == data[1]


def test_safetensors_in_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xff")
    folder.mkdir()
    for name in ("features.safetensors", "weights.safetensors"):
        write, read, mark = KINDS[name]
        write(folder / name)
        read(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content.replace(mark, bytes(8)))
        with pytest.raises(UserError, match="has another checksum than was written with it"):
            read(folder / name)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "w.safetensors")
    assert read_state_dict(str(tmp_path / "w.safetensors"))["weight"].tolist() == [1.0, 1.0]
    torch.save({"weight": torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(str(tmp_path / "w.pth"))["weight"].tolist() == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 3, device="meta"), "weight is no plain dense tensor"),
        (torch.zeros(2, 3).to_sparse(), "weight is no plain dense tensor"),
        (torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8), "weight has torch.qint8"),
        (torch.zeros(1).expand(2, 3), "weight is .* of 24 bytes, of which the file holds 4"),
        (torch.zeros(2, 3).double(), "weight has torch.float64, needed torch.float32"),
        ("text", "weight has shape None, needed \\(2, 3\\)"),
    ],
)
def test_weights_of_a_checkpoint_that_are_no_plain_numbers(value: Any, message: str, tmp_path: Path) -> None:
    from snnet.training.checkpoint import load_state

    save_checkpoint(tmp_path / "checkpoint.pt", **{**contents(), "model": {"weight": value}})
    state = load_checkpoint(tmp_path)["model"]
    with pytest.raises(UserError, match=f"does not fit this network: {message}"):
        load_state(torch.nn.Linear(3, 2, bias=False), state, tmp_path, "network")


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("metrics", [{**EPOCH, "loss": "low"}], "of epoch 0: loss must be a number from .*, got 'low'"),
        ("metrics", [EPOCH, EPOCH], "of epoch 1: epoch must be 1, got 0"),
        ("metrics", [{**EPOCH, "epoch": torch.zeros(2)}], "of epoch 0: epoch must be a number .*, got a Tensor"),
        ("metrics", [7], "of epoch 0: they must be an object, got 7"),
        ("metrics", [{**EPOCH, 7: 1.0}], "of epoch 0: a name must be text, got 7"),
        ("metrics", [{**EPOCH, 7: float("nan")}], "of epoch 0: a name must be text, got 7"),
        ("metrics", [{"epoch": 0, "loss": 1.0}], "of epoch 0: seconds is missing"),
        ("metrics", [{**EPOCH, "loss": -2e39}], "of epoch 0: loss must be a number from -3.5e[+]38 to 3.5e[+]38, got"),
        ("metrics", [{**EPOCH, "products": 10**400}], "of epoch 0: products must be .*, got a whole number of 1,"),
        ("metrics", [{**EPOCH, "mAP": 0.5}], "of epoch 0: rank1 is missing"),
        ("metrics", [{**EPOCH, "reranked_mAP": 0.5}], "of epoch 0: reranked_rank1 is missing"),
        ("ranks before training", {**BEFORE, "mAP": torch.zeros(2)}, "mAP must be a number from 0 to 1, got a Tensor"),
        ("ranks before training", {**BEFORE, "queries": 10**400}, "queries must be a whole number from 0 to .*, got"),
        ("ranks before training", {"mAP": 0.5}, "rank1 is missing"),
        ("ranks before training", {**BEFORE, "average_precision": 1}, "average_precision must be step .*, got 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_where_a_checkpoint_has_numbers(
    what: str, value: Any, message: str, tmp_path: Path
) -> None:
    path, entry = tmp_path / "checkpoint.pt", "metrics" if what == "metrics" else "before"
    save_checkpoint(path, **{**contents(), "metrics": [EPOCH], entry: value})
    with pytest.raises(UserError, match=f"checkpoint.pt is not a whole checkpoint: the {what}:? {message}"):
        check_measurements(load_checkpoint(tmp_path), path)


def test_whatever_loss_and_learning_rate_a_run_can_have_is_read_back() -> None:
    assert check_record({**EPOCH, "loss": 1e30, "lr": 1e15}, 0) == []
    largest = torch.finfo(torch.float32).max
    assert check_record({**EPOCH, "loss": largest, "lr": 1e15}, 0) == []


def test_what_a_checkpoint_has_measured_is_kept_without_what_else_there_is(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    records = [{**EPOCH, "loss": float("nan"), "label_symmetry": 1.0}]  # earlier versions wrote NaN
    before = {**BEFORE, "single_gallery_shot": True}
    save_checkpoint(path, **{**contents(), "metrics": records, "before": {**before, "more": torch.zeros(2)}})
    state = load_checkpoint(tmp_path)
    check_measurements(state, path)
    assert state["before"] == before and list(state["before"]) == list(before)
    assert str(state["metrics"]) == str(records)


def test_an_optimisers_state_that_does_not_fit(tmp_path: Path) -> None:
    from snnet.training.checkpoint import load_optimizer

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 3))], lr=0.1, momentum=0.9)

    good = optimizer().state_dict()
    good["state"] = {0: {"momentum_buffer": torch.ones(2, 3)}}
    fresh = optimizer()
    load_optimizer(fresh, good, tmp_path)
    assert fresh.state_dict()["state"][0]["momentum_buffer"].tolist() == [[1.0] * 3] * 2
    group = good["param_groups"][0]
    for bad, message in (
        ({**good, "param_groups": [{**group, "lr": "fast"}]}, "'lr' of its optimiser is 'fast'"),
        ({**good, "param_groups": [{**group, "params": [1]}]}, r"'params' of its optimiser is '\[1\]'"),
        ({**good, "param_groups": []}, "has no state, or other groups"),
        ({**good, "state": {0: {"momentum_buffer": torch.ones(3, 2)}}}, "'momentum_buffer' of parameter 0 "),
        ({**good, "state": {7: {"momentum_buffer": torch.ones(2, 3)}}}, "of parameter 7 of its optimiser"),
    ):
        with pytest.raises(UserError, match=message):
            load_optimizer(optimizer(), bad, tmp_path)


def test_an_archive_that_lost_its_first_entry(tmp_path: Path) -> None:
    write_features(tmp_path / "f.npz")
    content = (tmp_path / "f.npz").read_bytes()
    start = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", start + 4)
    end = content.index(b"PK\x05\x06")
    size = (end - second).to_bytes(4, "little")
    (tmp_path / "f.npz").write_bytes(content[: end + 12] + size + content[end + 16 :])
    with pytest.raises(UserError, match=r"its archive does not begin where the file does|zip"):
        load_features(tmp_path / "f.npz")


@pytest.mark.parametrize("name", ["features", "names", "pids"])
def test_an_array_in_the_place_of_the_checksums_is_noticed(tmp_path: Path, name: str) -> None:
    write_features(tmp_path / "f.npz")
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members["checksums.npy"], members[f"{name}.npy"] = members[f"{name}.npy"], members["checksums.npy"]
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    with pytest.raises(
        UserError, match=r"f.npz has an array 'checksums' .* in the place of the text that lists"
    ):
        load_features(tmp_path / "f.npz")


def test_label_files_whose_arrays_do_not_fit_together(tmp_path: Path) -> None:
    write_labels(tmp_path / "l.npz")
    with np.load(tmp_path / "l.npz") as arrays:
        whole = {name: arrays[name] for name in arrays if name != "checksums"}
    for name, value in (
        ("neighbors", np.array([0, 1, 3])),
        ("y_indices", np.array([0, 1, -1], np.int32)),
        ("y_nh_indptr", np.array([0, 2, 1, 3])),
        ("y_sym_indptr", np.array([0, 1, 2])),
    ):
        np.savez(tmp_path / "bad.npz", **{**whole, name: value})
        with pytest.raises(UserError, match=r"bad.npz is no label file .its arrays do not fit together"):
            load_labels(tmp_path / "bad.npz")
    del whole["neighbors"]
    np.savez(tmp_path / "bad.npz", **whole)
    with pytest.raises(UserError, match=r"bad.npz is no label file .it has no array 'neighbors'"):
        load_labels(tmp_path / "bad.npz")


def test_what_is_not_needed_and_what_has_another_form(tmp_path: Path) -> None:
    features, names = np.eye(3, dtype=np.float32), np.array(["a", "b", {}], dtype=object)
    np.savez(tmp_path / "f.npz", feat=features, paths=names, pids=np.array(["7", "-1", "7"]), names=names)
    for key in (None, "feat"):
        with pytest.warns(UserWarning) as warned:
            found = load_features(tmp_path / "f.npz", key)
        assert [str(w.message) for w in warned] == [
            f"{tmp_path / 'f.npz'}: 'paths' is left out: it holds Python objects",
            f"{tmp_path / 'f.npz'}: 'names' is left out: it holds Python objects",
        ]
        assert found.features.tolist() == features.tolist() and found.names is None
        assert found.pids is not None and found.pids.tolist() == [7, -1, 7]
    for pids, wanted in (
        (np.array([[4], [5], [-1]]), [4, 5, -1]),
        (np.array([4.0, 5.0, -1.0]), [4, 5, -1]),
        (np.array([b"x9", b"x1", b"x9"]), [1, 0, 1]),
        (np.array([0.5, 1, 2]), None),
        (np.array([np.nan, 1, 2]), None),
        (np.zeros((3, 2), int), None),
        (np.array([2**64 - 1, 0, 0], np.uint64), None),
        (np.array([True, False, True]), None),
    ):
        np.savez(tmp_path / "p.npz", features=features, pids=pids)
        if wanted is None:
            with pytest.warns(UserWarning, match="'pids' is left out: it must "):
                assert load_features(tmp_path / "p.npz").pids is None
        else:
            found = load_features(tmp_path / "p.npz")
            assert found.pids is not None and found.pids.tolist() == wanted
    with pytest.raises(UserError, match="holds Python objects in 'paths'; save plain arrays of numbers"):
        load_features(tmp_path / "f.npz", "paths")


@pytest.mark.parametrize(
    ("name", "list_of_all", "what"),
    [
        ("features.npz", "checksums.npy", "arrays"),
        ("labels.npz", "checksums.npy", "arrays"),
        ("checkpoint.pt", "archive/checksums", "members"),
    ],
)
def test_members_that_are_gone_or_stand_under_anothers_name(
    name: str, list_of_all: str, what: str, tmp_path: Path
) -> None:
    write, read, _ = KINDS[name]
    path = tmp_path / name
    write(path)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    assert list(members)[-1] == list_of_all
    one, other = list(members)[:2]
    for changed in (
        {key: value for key, value in members.items() if key != other},
        {**members, one: members[other], other: members[one]},
        {**members, "splits.npy": members[other]},
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in changed.items():
                archive.writestr(member, content)
        with pytest.raises(UserError, match=f"its {what} are not those that were written"):
            read(path)


def test_a_checkpoint_whose_tensors_have_changed_places(tmp_path: Path) -> None:
    """Their members are sound, of one size, and in each other's place."""
    path, state = tmp_path / "checkpoint.pt", contents()
    state["model"] = {"one": torch.zeros(3), "two": torch.ones(3)}
    save_checkpoint(path, **state)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    one, two = (
        name for name, content in members.items() if content in (bytes(12), torch.ones(3).numpy().tobytes())
    )
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**members, one: members[two], two: members[one]}.items():
            archive.writestr(member, content)
    with pytest.raises(UserError, match="its members are not those that were written"):
        load_checkpoint(path)


def test_a_checkpoint_without_a_list_of_its_members_is_read(tmp_path: Path) -> None:
    state = {"format": "snnet-checkpoint", "version": 1, **contents(), "model": {"weight": torch.ones(3)}}
    torch.save(state, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path)["model"]["weight"].tolist() == [1, 1, 1]
