"""``snnet.extract`` and the files that features are kept in."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from snnet import extract as command
from snnet.config.commands import ExtractCommand
from snnet.config.options import config_from
from snnet.data import build_dataset
from snnet.errors import UserError
from snnet.extract import extract
from snnet.files import outputs, safetensors_files
from snnet.label import label_table
from snnet.models import ReIDModel, build_model
from snnet.retrieval import feature_files
from snnet.retrieval.feature_files import FeatureSet, load_features, save_features
from snnet.retrieval.features import decode, extract_features
from snnet.runtime import PlacedModel, Placement
from snnet.training.checkpoint import load_checkpoint
from tests.snnet.label_checks import labelled

SIZE = ("--height", 32, "--width", 16, "--workers", 0, "--device", "cpu")


def extracted(*words: object) -> FeatureSet:
    return extract(ExtractCommand.parse([str(word) for word in words]))


def test_a_checkpoints_features_with_names_identities_cameras_and_splits(
    finished_run: Path, tiny_market: Path, tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    model = build_model("osnet_x0_25")
    model.load_state_dict(load_checkpoint(finished_run)["model"])
    dataset = build_dataset("market1501", str(tiny_market))
    config = config_from(tiny_options)
    placement = Placement(torch.device("cpu"), amp=False, channels_last=True)  # as a CPU has it
    network = PlacedModel(model, config, placement)
    splits = {"train": dataset.train, "query": dataset.query, "gallery": dataset.gallery}
    wanted = {
        name: extract_features(network, decode(images, config), "before").numpy()
        for name, images in splits.items()
        if images is not None
    }

    for suffix in ("npz", "safetensors"):
        output = tmp_path / f"all.{suffix}"
        returned = extracted("--checkpoint", finished_run, "--output", output, "--device", "cpu")
        found = load_features(output)
        np.testing.assert_array_equal(found.features, np.concatenate(list(wanted.values())))
        np.testing.assert_array_equal(found.features, returned.features)
        assert found.names is not None and found.pids is not None and found.camids is not None
        assert len(found.names) == 48 + 16 + 48
        assert found.names[0] == "bounding_box_train/0001_c1s1_000000_00.png"
        assert found.names[48] == "query/0101_c1s1_000050_00.png"
        assert found.splits == ("train",) * 48 + ("query",) * 16 + ("gallery",) * 48
        named = [os.path.basename(name).split("s1")[0] for name in found.names]
        assert named == [f"{p:04d}_c{c}" for p, c in zip(found.pids, found.camids, strict=True)]
        assert found.metadata["arch"] == "osnet_x0_25" and found.metadata["dataset"] == "market1501"
        assert (found.metadata["height"], found.metadata["width"]) == (32, 16)
        assert found.metadata["mean"] == [0.485, 0.456, 0.406]
        assert (
            found.metadata["orientation"] == "as EXIF or XMP says"
        )  # a cache of features made otherwise is not used

    output = tmp_path / "query.npz"
    query = extracted("--checkpoint", finished_run, "--output", output, "--split", "query", "--device", "cpu")
    np.testing.assert_array_equal(query.features, wanted["query"])
    assert query.names is not None and query.names[0] == "query/0101_c1s1_000050_00.png"
    assert sorted(os.listdir(tmp_path)) == ["all.npz", "all.safetensors", "query.npz"]


def drawn(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 32)).save(path, "png")


def test_a_person_has_one_number_over_all_splits_of_msmt17(tmp_path: Path) -> None:
    root = tmp_path / "MSMT17_V1"
    for split, listed, pids in (
        ("train", "train", (1, 0)), ("train", "val", (0, 2, -1)), ("test", "query", (0, 1)),
        ("test", "gallery", (-1, 0, 1, 1, 3)),
    ):  # fmt: skip
        files = [f"{pid:04d}/{pid:04d}_{listed}_{i:02d}_x.jpg" for i, pid in enumerate(pids)]
        for file in files:
            drawn(root / split / file)
        lines = [f"{file} {pid}\n" for file, pid in zip(files, pids, strict=True)]
        (root / f"list_{listed}.txt").write_text("".join(lines))
    words = ("--arch", "osnet_x0_25", "--weights", "none", *SIZE, "--dataset", "msmt17", "--data-dir", root)
    found = extracted(*words, "--output", tmp_path / "f.npz")
    assert found.names is not None and found.splits is not None and found.pids is not None
    for name, split, pid in zip(found.names, found.splits, found.pids, strict=True):
        published = int(os.path.basename(name).split("_")[0])
        assert pid == (published if split == "train" or published < 0 else published + 3)
    assert sorted(found.pids) == [-1, 0, 0, 1, 2, 3, 3, 4, 4, 4, 6]
    # A split has the same numbers in a file of its own.
    query = extracted(*words, "--output", tmp_path / "q.npz", "--split", "query")
    assert query.pids is not None and query.pids.tolist() == [3, 4]


def test_each_distractor_is_a_person_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "Market-1501"
    for folder, pids in (
        ("bounding_box_train", (7, 2)), ("query", (3,)), ("bounding_box_test", (-1, 0, 3, 0, 5, 3)),
    ):  # fmt: skip
        for i, pid in enumerate(pids):
            drawn(root / folder / f"{pid:04d}_c{i + 1}s1_000000_00.jpg")
    network = ("--arch", "osnet_x0_25", "--weights", "none", *SIZE, "--dataset", "market1501")
    found = extracted(*network, "--data-dir", root, "--output", tmp_path / "f.npz")
    assert found.pids is not None and found.pids.tolist() == [2, 7, 3, -1, 8, 9, 3, 3, 5]
    # Labels that are right for each identity that is known are all right, and all that there are.
    persons = np.unique(found.pids, return_inverse=True)[1]
    save_features(tmp_path / "ideal.npz", replace(found, features=np.eye(9, dtype=np.float32)[persons]))
    table = label_table(*labelled(tmp_path / "ideal.npz", "--output", tmp_path / "y.npz"))
    assert [line.split()[-2:] for line in table.splitlines()[2:4]] == 2 * [["100.0", "100.0"]]
    # Where a query has the number, it is an identity like any other.
    drawn(root / "query" / "0000_c9s1_000000_00.jpg")
    found = extracted(*network, "--data-dir", root, "--output", tmp_path / "f.npz")
    assert found.pids is not None and found.pids.tolist() == [2, 7, 0, 3, -1, 0, 0, 3, 3, 5]


def test_any_folder_with_weights_of_a_seed(tiny_market: Path, tmp_path: Path) -> None:
    words = ("--arch", "osnet_x0_25", "--weights", "none", "--seed", 3, *SIZE)
    words = (*words, "--dataset", "folder", "--data-dir", tiny_market)
    before = extracted(*words, "--output", tmp_path / "before.npz")
    after = extracted(*words, "--output", tmp_path / "after.npz", "--retrieval-feature", "after")
    found = load_features(tmp_path / "before.npz")
    assert found.pids is None and found.camids is None
    assert found.names is not None and found.names[0] == "bounding_box_test/0101_c1s1_000000_00.png"
    assert found.splits == ("train",) * 112
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1.0, atol=1e-6)
    # A new BatchNorm in eval() scales all dimensions by one factor, which the normalisation takes away.
    np.testing.assert_allclose(after.features, before.features, atol=1e-5)


def test_files_are_plain_arrays_for_other_programs(tmp_path: Path) -> None:
    content = FeatureSet(np.eye(2, 3, dtype=np.float64), names=("ä/1.jpg", "b.jpg"), pids=np.array([4, -1]))
    save_features(str(tmp_path / "f.npz"), content)
    save_features(tmp_path / "f.safetensors", content)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["checksums", "features", "metadata", "names", "pids"]
        assert arrays["features"].dtype == np.float32 and arrays["names"].tolist() == ["ä/1.jpg", "b.jpg"]
        assert arrays["pids"].tolist() == [4, -1]
    with safetensors.safe_open(tmp_path / "f.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["names"]) == ["ä/1.jpg", "b.jpg"]
        np.testing.assert_array_equal(file.get_tensor("features"), np.eye(2, 3))
    with pytest.raises(ValueError, match="pids has 1 entries for 2 features"):
        FeatureSet(np.eye(2), pids=np.array([1]))


def test_files_of_others_are_read(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(5, 4))
    np.save(tmp_path / "bare.npy", features.astype(np.float16))
    np.savez(tmp_path / "one.npz", embeddings=features, labels=np.arange(5), names=np.arange(5))
    np.savez(tmp_path / "two.npz", a=features, b=features[:, :2], metadata=np.array("not JSON"))
    np.testing.assert_array_equal(load_features(tmp_path / "bare.npy").features, features.astype(np.float16))
    np.testing.assert_array_equal(load_features(tmp_path / "one.npz").features, features.astype(np.float32))
    found = load_features(tmp_path / "two.npz", key="b")
    assert found.features.shape == (5, 2) and found.metadata == {} and found.names is None
    with pytest.raises(UserError, match=r"two.npz has 2 arrays that may be features: name one with --key; "):
        load_features(tmp_path / "two.npz")
    with pytest.raises(UserError, match=r"has no array 'c': .* it holds a \[5, 4\] float64, b \[5, 2\]"):
        load_features(tmp_path / "two.npz", key="c")
    with pytest.raises(UserError, match=r"'labels' must be real numbers .*, got int64 \[5\]"):
        load_features(tmp_path / "one.npz", key="labels")


def test_files_of_torch_are_read(tmp_path: Path) -> None:
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.save(features.clone().requires_grad_(), tmp_path / "bare.pt")
    content = {"features": features.bfloat16(), "pids": torch.arange(5), "names": list("abcde"), "epoch": 3}
    torch.save(content, tmp_path / "dict.pth")
    safetensors.torch.save_file({"features": features.bfloat16()}, tmp_path / "rounded.safetensors")
    rounded = features.bfloat16().float().numpy()
    np.testing.assert_array_equal(load_features(str(tmp_path / "bare.pt")).features, features)
    np.testing.assert_array_equal(load_features(tmp_path / "rounded.safetensors").features, rounded)
    found = load_features(tmp_path / "dict.pth")
    np.testing.assert_array_equal(found.features, rounded)
    assert found.pids is not None and found.pids.tolist() == [0, 1, 2, 3, 4]
    assert found.names == ("a", "b", "c", "d", "e")


def test_the_array_that_is_taken_is_named_unless_it_is_called_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.npz"
    for arrays, key, said in (
        ({"embeddings": np.eye(3), "labels": np.arange(3)}, None, "'embeddings' [3, 3] float64"),
        ({"a": np.eye(3), "b": np.eye(3, 2)}, "b", "'b' [3, 2] float64"),
        ({"features": np.eye(3), "b": np.eye(3, 2)}, None, None),
        # An array of images is no layer of a network.
        ({"images": np.zeros((3, 3, 8, 4)), "f": np.eye(3)}, None, "'f' [3, 3] float64"),
    ):
        np.savez(path, **arrays)
        load_features(path, key)
        assert capsys.readouterr().out == (f"features of {path}: {said}\n" if said else "")


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_weights_of_a_network_are_no_features(container: str | None, tmp_path: Path) -> None:
    weights = dict(ReIDModel("osnet_x0_25", "fc").state_dict())
    assert [name for name, value in weights.items() if value.dim() == 2] == ["backbone.fc.0.weight"]
    torch.save(weights if container is None else {container: weights, "epoch": 3}, tmp_path / "w.pth")
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        with pytest.raises(UserError) as caught:
            load_features(path)
        assert str(caught.value) == (
            f"{path} holds the weights of a network, not features: snnet.extract makes features with them"
        )
    asked = load_features(tmp_path / "w.safetensors", "backbone.fc.0.weight")  # whoever names it gets it
    assert asked.features.shape == (512, 128)


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_an_image_by_its_name_is_read(
    numbered: bool, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    names = list(range(5)) if numbered else [f"{i:04d}_c1.jpg" for i in range(5)]
    path = tmp_path / "f.pth"
    torch.save(OrderedDict(zip(names, rows, strict=True)), path)
    for kept in (range(5), range(2, 4)):
        found = load_features(path, rows=lambda _, kept=kept: kept)
        np.testing.assert_array_equal(found.features, rows.float().numpy()[kept.start : kept.stop])
        assert found.names == tuple(map(str, names))[kept.start : kept.stop]
        assert capsys.readouterr().out == f"features of {path}: 5 tensors [4] float32, one an image\n"


def test_tensors_by_name_that_are_not_one_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, one = tmp_path / "f.pt", torch.ones(4)
    for content, message in (
        (
            {"a": one, "b": torch.ones(3)},
            "has 0 arrays that may be features: .* a \\[4\\] float32, b \\[3\\] float32",
        ),
        ({"a": one, "b": one.double()}, "has 0 arrays that may be features"),
        ({"pids": torch.arange(4), "camids": torch.arange(4)}, "has 0 arrays that may be features"),
        ({"features": one, "b": one}, "'features' must be real numbers"),
        ({"a": one, "b": torch.ones(1).expand(4)}, "has 0 arrays that may be features"),
        ({"a": one, "b": one}, "has tensors of 32 bytes together, of which the file holds 16"),
        ({"a": {"b": one}}, "has no tensor by name: of its 1 entries the keys are str, the values dict$"),
        (
            {("a", 1): one, 2: torch.eye(2)},
            "has no tensor by name: of its 2 entries the keys are int and tuple, the values Tensor$",
        ),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            load_features(path)
    torch.save({f"{i}.jpg": torch.ones(1000) for i in range(100)}, path)
    free = iter([10**6, 399_999])  # before the file is read, and after that
    monkeypatch.setattr("snnet.files.archive.free_memory", lambda _: next(free))
    with pytest.raises(UserError, match="is not read: one array of its tensors takes"):
        load_features(path)


def test_a_checkpoint_is_no_file_of_features(finished_run: Path) -> None:
    path = finished_run / "checkpoint.pt"
    with pytest.raises(UserError) as caught:
        load_features(path)
    assert str(caught.value) == (
        f"{path} is a training checkpoint: snnet.extract --checkpoint makes features with it"
    )


def test_fields_that_are_no_arrays_are_named() -> None:
    for fields, error, message in (
        ({"features": [[1.0]]}, TypeError, "features must be a numpy array, got list"),
        ({"features": torch.eye(2)}, TypeError, "features must be a numpy array, got Tensor"),
        ({"features": np.eye(2), "pids": [1, 2]}, TypeError, "pids must be a numpy array, got list"),
        ({"features": np.ones(3)}, ValueError, r"features must be \[n, d\], got shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            FeatureSet(**fields)  # type: ignore[arg-type]


def test_files_that_cannot_be_features_are_named(tmp_path: Path) -> None:
    bad = np.zeros((3, 2))
    bad[1, 0] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros((0, 4)))
    np.savez(tmp_path / "pids.npz", features=np.eye(3), pids=np.arange(2))
    np.savez(tmp_path / "whole.npz", features=np.eye(300))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:1000])
    (tmp_path / "half.safetensors").write_bytes(b"\x99" * 50)
    for suffix in ("npz", "npy", "pt"):
        (tmp_path / f"text.{suffix}").write_text("no numbers at all\n")
    torch.save(tmp_path, tmp_path / "path.pt")  # an object, for which code would have to run
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"logits": torch.zeros(3)}, tmp_path / "logits.pt")
    (tmp_path / "features.csv").write_text("1,2\n")
    for name, message in {
        "nan.npy": "1 of 3 features are not finite, first row 1",
        "objects.npy": "holds Python objects",
        "empty.npy": r"must be real numbers \[images, dimensions\], got float64 \[0, 4\]",
        "pids.npz": "pids has 2 entries for 3 features",
        "half.npz": "damaged or of another format",
        "half.safetensors": "damaged or of another format",
        "text.npz": r"text.npz is damaged or no .npz file",
        "text.npy": r"text.npy is damaged or no .npy file",
        "text.pt": "is damaged, or holds more than tensors and plain values",
        "path.pt": "is damaged, or holds more than tensors and plain values",
        "list.pth": "must hold a tensor or a dict of tensors, got list",
        "logits.pt": r"has 0 arrays that may be features: name one with --key; it holds logits \[3\] float32",
        "features.csv": r"files that end in .npz, .npy, .safetensors, .pt or .pth",
        "gone.npz": "there is no feature file",
    }.items():
        for rows in (None, lambda images: range(images // 2)):
            with pytest.raises(UserError, match=message) as caught:
                load_features(tmp_path / name, rows=rows)
            assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [range(2, 5), range(0), range(7)])
def test_some_rows_are_those_of_the_whole(
    kept: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_files, "_BLOCK_BYTES", 3 * 4 * 4)  # three rows of float32, or one of float64
    values = np.random.default_rng(0).normal(size=(7, 4))
    content = FeatureSet(values, tuple("abcdefg"), pids=np.arange(7), splits=("train",) * 7)
    save_features(tmp_path / "f.npz", content)
    save_features(tmp_path / "f.safetensors", content)
    np.savez_compressed(tmp_path / "packed.npz", features=values, names=np.array(list("abcdefg")))
    np.save(tmp_path / "columns.npy", np.asfortranarray(values))
    np.save(tmp_path / "swapped.npy", values.astype(">f4"))
    torch.save({"features": torch.from_numpy(values), "names": list("abcdefg")}, tmp_path / "f.pt")
    safetensors.torch.save_file({"x": torch.from_numpy(values).bfloat16()}, tmp_path / "rounded.safetensors")
    for path in sorted(tmp_path.iterdir()):
        whole, found = load_features(path), load_features(path, rows=lambda _: kept)
        part = slice(kept.start, kept.stop)
        np.testing.assert_array_equal(found.features, whole.features[part])
        assert found.features.dtype == np.float32 and found.metadata == whole.metadata
        for name in ("names", "pids", "splits"):
            wanted = getattr(whole, name)
            assert (getattr(found, name) is None) == (wanted is None)
            assert wanted is None or list(getattr(found, name)) == list(wanted[part])


def test_what_cannot_be_done_is_said_before_the_work(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = ("--checkpoint", finished_run, "--device", "cpu")
    (tmp_path / "d.npz").mkdir()
    for words, message in (
        ((*checkpoint, "--output", tmp_path / "f.txt"), r"f.txt: the name must end in .npz or .safetensors"),
        ((*checkpoint, "--output", tmp_path / "gone" / "f.npz"), "there is no folder"),
        ((*checkpoint, "--output", tmp_path / "d.npz"), r"d.npz: is a folder"),
        (checkpoint, "^--output FILE is missing: what to write: .npz or .safetensors$"),
        (("--output", "f.npz"), "no network to use: give --checkpoint, or --arch and --weights"),
        (
            (*checkpoint, "--output", "f.npz", "--split", "test"),
            "^--split: must be one of train, query, gallery, all, got 'test'$",
        ),
        ((*checkpoint, "--output", tmp_path / "f.npz", "--arch", "resnet18"), "--arch resnet18 contradicts"),
        ((*checkpoint, "--output", "f.npz", "--config", "synthetic"), "--config cannot be given with"),
    ):
        with pytest.raises(UserError, match=message):
            extracted(*words)
    folder = ("--dataset", "folder", "--data-dir", tmp_path.parent)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="--split gallery: dataset folder has only train"):
        extracted(*checkpoint, *folder, "--output", tmp_path / "f.npz", "--split", "gallery")
    assert not (tmp_path / "f.npz").exists()


def test_names_that_no_header_holds_are_refused_before_the_first_image_is_read(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in range(100):  # of 112 bytes each
        (folder / f"{number:03d}-{'n' * 104}.png").write_bytes(b"")
    words = ("--checkpoint", finished_run, "--device", "cpu", "--dataset", "folder", "--data-dir", folder)
    for module in (feature_files, safetensors_files):
        monkeypatch.setattr(module, "MOST_HEADER_BYTES", 2**14 + 10_000)
    with pytest.raises(
        UserError, match=r"the names of 100 images do not fit into .* at most 26,384 bytes: use .npz"
    ):
        extracted(*words, "--output", tmp_path / "f.safetensors")
    # An image that cannot be read is met only where the names fit.
    monkeypatch.setattr(feature_files, "MOST_HEADER_BYTES", 30_000)
    for output in ("f.safetensors", "f.npz"):
        with pytest.raises(UserError, match=r"cannot read image .*000-n"):
            extracted(*words, "--output", tmp_path / output)
    assert sorted(os.listdir(tmp_path)) == ["crops"]
    content = FeatureSet(np.eye(1, dtype=np.float32), names=("n" * 27_000,))
    with pytest.raises(
        UserError, match=r"cannot write .*f.safetensors: a header of .safetensors has at most 26,384"
    ):
        save_features(tmp_path / "f.safetensors", content)


def test_a_disk_that_is_too_full_is_said_before_the_first_image_is_read(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--checkpoint", finished_run, "--device", "cpu", "--output", tmp_path / "f.npz")
    needed = 4 * 112 * 128
    asked: list[Path] = []

    def usage(total: int, free: int) -> None:
        monkeypatch.setattr(
            outputs.shutil,
            "disk_usage",
            lambda path: asked.append(path) or SimpleNamespace(total=total, free=free),
        )

    monkeypatch.setattr(command, "decode_share", lambda *_: pytest.fail("an image is read"))
    usage(2**30, needed - 1)
    with pytest.raises(UserError) as caught:
        extracted(*words)
    assert str(caught.value) == (
        f"--output {tmp_path / 'f.npz'}: 112 features of 128 dimensions take 0.0 GiB, and {tmp_path} has 0.0 free"
    )
    for total, free in ((2**30, needed), (0, 0)):  # enough; a file system that does not count
        usage(total, free)
        with pytest.raises(pytest.fail.Exception, match="an image is read"):
            extracted(*words)
    assert asked == [tmp_path] * 3 and os.listdir(tmp_path) == []


def test_the_command_says_what_it_wrote(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(finished_run), "--output", str(tmp_path / "f.npz"), "--split", "query"]
    command.main(ExtractCommand.parse([*words, "--device", "cpu", "--quiet"]))
    assert capsys.readouterr().out == f"{tmp_path / 'f.npz'}: 16 features of 128 dimensions\n"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": np.full((3, 2), np.nan)}, "features must be finite as float32, 3 of 3 are not, first row 0"),
        (
            {"features": np.array([[0.0], [1e39], [0.0]])},
            "features must be finite as float32, 1 of 3 are not, first row 1",
        ),
        ({"features": np.eye(3) + 1j}, "features must be real numbers .*, got complex128 [3, 3]"),
        ({"features": np.eye(3) > 0}, "features must be real numbers .*, got bool [3, 3]"),
        ({"features": np.full((3, 2), "1")}, "features must be real numbers .*, got <U1 [3, 2]"),
        ({"features": np.zeros((0, 4)), "pids": None}, "features must be real numbers .*, got float64 [0, 4]"),
        ({"features": np.zeros((3, 0))}, "features must be real numbers .*, got float64 [3, 0]"),
        ({"pids": np.array([0.5, 1.9, -0.9])}, "pids must be integers [n], got float64 [3]"),
        ({"pids": np.array([True, False, True])}, "pids must be integers [n], got bool [3]"),
        ({"pids": np.array(["1", "2", "3"])}, "pids must be integers [n], got <U1 [3]"),
        ({"pids": np.array([1, 2, None])}, "pids must be integers [n], got object [3]"),
        ({"pids": np.array([[1], [2], [3]])}, "pids must be integers [n], got int64 [3, 1]"),
        ({"camids": np.array([1, 2, 2**63], np.uint64)}, "camids must fit into int64, got 9223372036854775808"),
        ({"camids": np.array([1, np.nan, 2])}, "camids must be integers [n], got float64 [3]"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(
    fields: dict[str, Any], message: str, suffix: str, tmp_path: Path
) -> None:
    content = FeatureSet(**{"features": np.eye(3), "pids": np.arange(3, dtype=np.uint8), **fields})
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(UserError, match=f"^{pattern}$"):
        save_features(tmp_path / f"f{suffix}", content)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_numbers_of_any_width_are_written(suffix: str, tmp_path: Path) -> None:
    pids, camids = np.array([3, 2**63 - 1], np.uint64), np.array([-1, 4], np.int8)
    save_features(tmp_path / f"f{suffix}", FeatureSet(np.array([[1, 2], [3, 4]]), pids=pids, camids=camids))
    found = load_features(tmp_path / f"f{suffix}")
    assert (found.pids.tolist(), found.camids.tolist()) == (pids.tolist(), [-1, 4])  # type: ignore[union-attr]
    assert found.features.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "strided",
    [np.asfortranarray, lambda rows: rows[::-1], lambda rows: rows[:, ::2], lambda rows: rows[1::2]],
)
def test_strided_arrays_are_written_as_they_are(strided: Any, suffix: str, tmp_path: Path) -> None:
    rows = strided(np.arange(24, dtype=np.float32).reshape(6, 4))
    pids = np.arange(60, 48, -1)[::2][: len(rows)]
    save_features(tmp_path / f"f{suffix}", FeatureSet(rows, pids=pids, camids=pids[::-1]))
    found = load_features(tmp_path / f"f{suffix}")
    np.testing.assert_array_equal(found.features, rows)
    np.testing.assert_array_equal(found.pids, pids)
    np.testing.assert_array_equal(found.camids, pids[::-1])


def test_names_that_are_bytes_are_read(tmp_path: Path) -> None:
    features = np.eye(2, dtype=np.float32)
    np.savez(tmp_path / "f.npz", features=features, names=np.array(["a/é.jpg".encode(), b"b.jpg"]))
    assert load_features(tmp_path / "f.npz").names == ("a/é.jpg", "b.jpg")
    np.savez(tmp_path / "f.npz", features=features, names=np.array([b"\xff", b"b.jpg"]))
    with pytest.warns(UserWarning, match="'names'.*UTF-8"):
        assert load_features(tmp_path / "f.npz").names is None


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    features = np.eye(2, dtype=np.float32)
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"f{suffix}"
        for metadata, reason in (
            ({"a": np.float32(1)}, "Object of type float32 is not JSON serializable"),
            ({"a": {1, 2}}, "Object of type set is not JSON serializable"),
        ):
            with pytest.raises(UserError, match=f"^metadata must be values that JSON can hold: {reason}$"):
                save_features(path, FeatureSet(features, metadata=metadata))
    for name in ("names", "splits"):
        content = FeatureSet(features, **{name: ("a" * 16_385, "b")})  # type: ignore[arg-type]
        message = f"{name} in a .npz must have 16,384 characters or fewer each, got 16,385: use .safetensors"
        with pytest.raises(UserError, match=f"^{message}$"):
            save_features(tmp_path / "f.npz", content)
        assert os.listdir(tmp_path) == []
        save_features(tmp_path / "f.safetensors", content)
        assert getattr(load_features(tmp_path / "f.safetensors"), name) == ("a" * 16_385, "b")
        save_features(tmp_path / "f.npz", replace(content, **{name: ("a" * 16_384, "b")}))
        assert getattr(load_features(tmp_path / "f.npz"), name) == ("a" * 16_384, "b")
        for suffix in (".npz", ".safetensors"):
            (tmp_path / f"f{suffix}").unlink()
