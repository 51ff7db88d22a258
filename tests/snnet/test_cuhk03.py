"""CUHK03 as torchreid extracts it: folders of raw names and lists of splits, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snnet.data import build_dataset
from snnet.errors import UserError
from tests.snnet.image_trees import write_files

TRAIN = ["1_001_1_01.png", "1_001_2_06.png", "2_001_1_01.png"]
QUERY, GALLERY = ["1_002_1_02.png"], ["1_002_2_10.png", "5_002_1_03.png", "1_002_1_02.png"]


def write(root: Path, kind: str = "detected", protocol: str = "new", **changes: Any) -> Path:
    """The folders of torchreid; the lists name files by paths of another machine."""
    write_files(root, {f"images_{kind}": sorted({*TRAIN, *QUERY, *GALLERY})})
    split: dict[str, Any] = {"num_train_pids": 2}
    for name, files in (("train", TRAIN), ("query", QUERY), ("gallery", GALLERY)):
        split[name] = [[f"/home/someone/images_{kind}/{file}", 7, 0] for file in reversed(files)]
    content = changes.pop("content", [split | changes, {"train": []}])
    (root / f"splits_{protocol}_{kind}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("below", ["", "cuhk03", "CUHK03/cuhk03"])
def test_identity_is_pair_and_person_and_camera_the_view(tmp_path: Path, below: str) -> None:
    root = write(tmp_path / below)
    data = build_dataset("cuhk03", tmp_path)
    assert data.train.paths == tuple(str(root / "images_detected" / file) for file in TRAIN)
    assert data.train.pids.tolist() == [1_000_001, 1_000_001, 2_000_001]
    assert data.train.cams.tolist() == [1, 2, 1]
    assert (data.query.pids.tolist(), data.query.cams.tolist()) == ([1_000_002], [1])
    assert data.gallery.pids.tolist() == [1_000_002, 1_000_002, 5_000_002]
    assert data.summary().splitlines()[1] == "  train   3 images, 2 identities, 2 cameras"


def test_detected_comes_first_and_a_folder_of_images_is_itself(tmp_path: Path) -> None:
    write(tmp_path, "labeled", train=[["C:\\data\\3_007_1_01.png", 0, 0]])
    assert build_dataset("cuhk03", tmp_path).train.pids.tolist() == [3_000_007]
    write(tmp_path, "detected")
    assert len(build_dataset("cuhk03", tmp_path).train) == 3
    labeled = build_dataset("cuhk03", tmp_path / "images_labeled")
    assert labeled.train.paths == (str(tmp_path / "images_labeled" / "3_007_1_01.png"),)


def test_the_classic_split_has_lists_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, protocol="classic")
    assert build_dataset("cuhk03-classic", tmp_path).gallery.cams.tolist() == [1, 2, 1]
    with pytest.raises(
        UserError, match=r"lacks splits_new_detected\.json, which torchreid writes beside the images"
    ):
        build_dataset("cuhk03", tmp_path)
    with pytest.raises(UserError, match="CamStyle needs a dataset with cameras and a training folder, not"):
        build_dataset("cuhk03-classic", tmp_path, camstyle=True)


def test_the_layout_of_market1501_comes_before_raw_names(tmp_path: Path) -> None:
    write(tmp_path)
    write_files(
        tmp_path / "labeled",
        {folder: ["0004_c2_1.png"] for folder in ("bounding_box_train", "query", "bounding_box_test")},
    )
    assert build_dataset("cuhk03", tmp_path).train.pids.tolist() == [4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"query": [["images/1_001.png", 0, 0]]},
            r"lists '1_001\.png', not a name of the pair, the person, the view and the number, such as 1_001_2_06",
        ),
        (
            {"query": [["1_001_1_01.png", 0]]},
            r"must list \[path, identity, camera\] for query, got \['1_001_1_01",
        ),
        ({"query": [[5, 0, 0]]}, r"must list \[path, identity, camera\] for query, got \[5, 0, 0\]"),
        ({"gallery": []}, r"has no images for gallery, got \[\]"),
        ({"train": None}, "has no images for train, got None"),
        ({"content": []}, r"is no list of splits, got \[\]"),
        ({"content": {"train": 1}}, r"is no list of splits, got \{'train': 1\}"),
    ],
)
def test_a_list_of_another_form_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"^dataset cuhk03: .*splits_new_detected\.json' {message}"):
        build_dataset("cuhk03", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"[{", "is not JSON: "), (b"[" * 100_000, "is not JSON: "), (b"\xff", "is no UTF-8 text")],
)
def test_a_damaged_list_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (write(tmp_path) / "splits_new_detected.json").write_bytes(text)
    with pytest.raises(UserError, match=rf"the list .*splits_new_detected\.json' {message}"):
        build_dataset("cuhk03", tmp_path)


def test_raw_images_without_lists_are_a_folder(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match="has no folder images_detected or images_labeled"):
        build_dataset("cuhk03-classic", write_files(tmp_path / "other", {"images": ["1.png"]}))
    images = tmp_path / "images_detected"
    pattern = r"(?P<pid>\d+_\d+)_(?P<cam>\d)_"
    assert build_dataset("folder", images, name_pattern=pattern).train.cams.tolist() == [1, 2, 1, 2, 1, 1]
