"""Which identities are one, and which are junk, however their names are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snnet.data import build_dataset
from snnet.errors import UserError
from snnet.retrieval.rank_metrics import rank_metrics
from tests.snnet.image_trees import MARKET_FILES, names, write_files, write_msmt17


@pytest.mark.parametrize(
    "junk", ["-1", "-01", "-001", "\u22121", "\u20131", " -1 ", "-2", "\uff0d1", "-\u0661", "-1.0"], ids=ascii
)
@pytest.mark.parametrize("others", [("KA51AB", "7"), ("0003", "7")], ids=["text", "numbers"])
def test_a_negative_identity_is_junk_in_any_spelling(
    tmp_path: Path, junk: str, others: tuple[str, str]
) -> None:
    first, second = others
    write_files(
        tmp_path,
        {
            "train": [f"{first}_c1_0.jpg", f"{junk}_c2_0.jpg", f"{second}_c2_0.jpg"],
            "query": [f"{first}_c1_1.jpg", f"{junk}_c1_1.jpg"],
            "gallery": [f"{junk}_c3_0.jpg", f"{first}_c2_2.jpg", f"{second}_c1_2.jpg"],
        },
    )
    data = build_dataset("custom", str(tmp_path), name_pattern=r"(?P<pid>[^_/]+)_c(?P<cam>\d)")
    ids = dict(zip(names(data.train), data.train.pids.tolist(), strict=True))
    assert len(ids) == 2 and min(ids.values()) >= 0 and f"{junk}_c2_0.jpg" not in ids
    assert data.train.left_out == ("1 junk (pid -1)",)
    assert "2 images, 2 identities, 2 cameras; left out: 1 junk (pid -1)" in data.summary()
    gallery = dict(zip(names(data.gallery), data.gallery.pids.tolist(), strict=True))
    assert gallery[f"{junk}_c3_0.jpg"] == -1
    assert gallery[f"{first}_c2_2.jpg"] == ids[f"{first}_c1_0.jpg"]
    assert sorted(data.query.pids.tolist()) == [-1, ids[f"{first}_c1_0.jpg"]]
    # The junk box, by far the most alike, is dropped: as with numbers alone, the match is first.
    similarity = np.array([[1.0 if name == f"{junk}_c3_0.jpg" else 0.5, 0.0][name.startswith(second)]
                           for name in names(data.gallery)])  # fmt: skip
    found = rank_metrics(
        np.tile(similarity, (2, 1)), data.query.pids, data.gallery.pids, *data.evaluation_cams()
    )
    assert (found.rank1, found.mAP, found.num_without_match) == (1.0, 1.0, 1)


def test_an_identity_has_one_number_however_it_is_written(tmp_path: Path) -> None:
    files = {"train": ["7_a.jpg"], "query": ["007_b.jpg", "x_b.jpg"], "gallery": [" 7_c.jpg", "x _c.jpg"]}
    write_files(tmp_path, files)
    data = build_dataset("custom", str(tmp_path), name_pattern=r"(?P<pid>[^_/]+)_")
    assert data.train.pids.tolist() == [0] and data.query.pids.tolist() == [0, 1]
    assert data.gallery.pids.tolist() == [0, 1]
    files = {"train": ["7_a.jpg"], "query": ["7.0_b.jpg", "7.5_b.jpg"], "gallery": ["7.00_c.jpg", "7._c.jpg"]}
    data = build_dataset("custom", str(write_files(tmp_path / "b", files)), name_pattern=r"(?P<pid>[^_/]+)_")
    assert data.train.pids.tolist() == [0] and data.query.pids.tolist() == [0, 2]
    assert data.gallery.pids.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "cuhk03"])
@pytest.mark.parametrize("junk", ["-1", "-0001", "\u22121"], ids=ascii)
def test_the_readers_of_the_usual_layout_know_junk(tmp_path: Path, name: str, junk: str) -> None:
    files = {folder: [*names, f"{junk}_c1s1_000009_00.jpg"] for folder, names in MARKET_FILES.items()}
    data = build_dataset(name, str(write_files(tmp_path, files)))
    assert data.train.pids.tolist() == [2, 2, 7] and data.train.left_out == ("1 junk (pid -1)",)
    assert sorted(data.gallery.pids.tolist()) == [-1, -1, 0, 1, 3]
    assert min(data.query.pids) == -1


def test_junk_in_the_lists_of_msmt17(tmp_path: Path) -> None:
    write_msmt17(tmp_path, "train", "test")
    for name in ("list_train.txt", "list_gallery.txt"):
        with open(tmp_path / name, "a") as file:
            file.write(
                "0009/0009_000_03_0113noon_0022_1.jpg -1\n0009/0009_001_03_0113noon_0022_1.jpg \u221201\n"
            )
    data = build_dataset("msmt17", str(tmp_path))
    assert data.train.pids.tolist() == [0, 0, 1] and data.train.left_out == ("2 junk (pid -1)",)
    assert data.gallery.pids.tolist() == [4, 5, -1, -1]
    (tmp_path / "list_val.txt").write_text("0009/0009_000_03_0113noon_0022_1.jpg -1\n")
    (tmp_path / "list_train.txt").write_text("0009/0009_001_03_0113noon_0022_1.jpg -1\n")
    with pytest.raises(UserError, match="none is left to train on"):
        build_dataset("msmt17", str(tmp_path))


def test_a_pattern_that_cuts_the_minus_sign_off_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {split: ["1_c1.jpg", "-1_c3.jpg"] for split in ("train", "query", "gallery")})
    with pytest.raises(
        UserError, match=r"takes the identity '1' from '.*/-1_c3\.jpg' without the minus sign"
    ):
        build_dataset("custom", str(tmp_path), name_pattern=r"(?P<pid>\d+)_c(?P<cam>\d)")
    # Elsewhere in a name a minus sign is a hyphen.
    write_files(tmp_path / "b", {split: ["id-1_c1.jpg"] for split in ("train", "query", "gallery")})
    data = build_dataset("custom", str(tmp_path / "b"), name_pattern=r"(?P<pid>\d+)_c(?P<cam>\d)")
    assert data.train.pids.tolist() == [1]
