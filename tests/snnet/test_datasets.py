"""Readers against little trees of files: nothing is decoded here, so the files are empty."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snnet.data import DATASETS, ImageSet, build_dataset, datasets
from snnet.errors import UserError
from tests.snnet.image_trees import MARKET_FILES, MSMT17_LISTS, names, write_files, write_msmt17


def test_market1501_reads_ids_cameras_and_double_extensions_in_path_order(tmp_path: Path) -> None:
    data = build_dataset("market1501", str(write_files(tmp_path, MARKET_FILES)))
    assert names(data.train) == sorted(MARKET_FILES["bounding_box_train"])
    assert data.train.pids.tolist() == [2, 2, 7] and data.train.pids.dtype == np.int64
    assert data.train.cams.tolist() == [1, 2, 3] and data.train.cams.dtype == np.int64
    assert data.query.pids.tolist() == [1, 3] and data.query.cams.tolist() == [1, 5]
    assert data.gallery.pids.tolist() == [-1, 0, 1, 3] and data.gallery.cams.tolist() == [1, 2, 2, 6]
    assert data.train.styles is None
    assert data.summary().splitlines() == [
        "dataset market1501",
        "  train   3 images, 2 identities, 3 cameras",
        "  query   2 images, 2 identities, 2 cameras",
        "  gallery 4 images, 3 identities, 3 cameras, 1 of them junk (pid -1)",
    ]


def test_junk_is_left_out_of_training_only(tmp_path: Path) -> None:
    write_files(tmp_path, MARKET_FILES)
    (tmp_path / "bounding_box_train" / "-1_c1s1_000001_00.jpg").touch()
    data = build_dataset("market1501", str(tmp_path))
    assert len(data.train) == 3 and data.train.pids.min() == 2
    assert len(data.gallery) == 4 and data.gallery.pids.min() == -1


def test_training_folder_of_junk_only_is_an_error(tmp_path: Path) -> None:
    write_files(tmp_path, {**MARKET_FILES, "bounding_box_train": ["-1_c1s1_000001_00.jpg"]})
    with pytest.raises(UserError, match="none is left to train on"):
        build_dataset("market1501", str(tmp_path))


def test_other_files_are_no_images(tmp_path: Path) -> None:
    write_files(tmp_path, MARKET_FILES)
    for name in ("Thumbs.db", "readme.txt", "._0002_c1s1_000451_03.jpg"):
        (tmp_path / "bounding_box_train" / name).touch()
    assert len(build_dataset("market1501", str(tmp_path)).train) == 3


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("market1501", "Market-1501-v15.09.15"),
        ("market1501", "market1501"),
        ("market1501", "market1501/Market-1501-v15.09.15"),
        ("dukemtmc", "dukemtmc-reid/DukeMTMC-reID"),
        ("cuhk03", "cuhk03-np/labeled"),
    ],
)
def test_usual_folder_names_are_found_below_the_data_folder(tmp_path: Path, name: str, below: str) -> None:
    write_files(tmp_path / below, MARKET_FILES)
    data = build_dataset(name, str(tmp_path))
    assert data.name == name
    assert data.train.paths[0] == str(tmp_path / below / "bounding_box_train" / "0002_c1s1_000451_03.jpg")


def test_veri776_is_read_from_its_own_folders(tmp_path: Path) -> None:
    files = {
        "image_train": ["0001_c001_00016450_0.jpg", "0001_c014_00016460_0.jpg", "0003_c002_00000020_1.jpg"],
        "image_query": ["0002_c002_00030600_0.jpg"],
        "image_test": ["0002_c001_00030610_0.jpg", "0005_c020_00030620_0.jpg"],
    }
    write_files(tmp_path / "VeRi", files)
    data = build_dataset("veri776", str(tmp_path))
    assert data.train.paths[1] == str(tmp_path / "VeRi" / "image_train" / "0001_c014_00016460_0.jpg")
    assert data.train.pids.tolist() == [1, 1, 3] and data.train.cams.tolist() == [1, 14, 2]
    assert data.query.pids.tolist() == [2] and data.query.cams.tolist() == [2]
    assert data.gallery.pids.tolist() == [2, 5] and data.gallery.cams.tolist() == [1, 20]
    with pytest.raises(UserError, match=r"dataset veri776: .* lacks .*image_query"):
        (tmp_path / "VeRi" / "image_query").rename(tmp_path / "VeRi" / "other")
        build_dataset("veri776", str(tmp_path))


def test_cuhk03_prefers_detected_unless_told(tmp_path: Path) -> None:
    for kind, count in (("detected", 2), ("labeled", 3)):
        train = [f"000{i}_c1_{i}.png" for i in range(1, count + 1)]
        write_files(
            tmp_path / kind, {"bounding_box_train": train, "query": train, "bounding_box_test": train}
        )
    assert len(build_dataset("cuhk03", str(tmp_path)).train) == 2
    labeled = build_dataset("cuhk03", str(tmp_path / "labeled"))
    assert labeled.train.pids.tolist() == [1, 2, 3] and labeled.train.cams.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("below", "train", "test"),
    [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2"), ("", "train", "test")],
)
def test_msmt17_reads_both_releases(tmp_path: Path, below: str, train: str, test: str) -> None:
    root = write_msmt17(tmp_path / below, train, test)
    data = build_dataset("msmt17", str(tmp_path))
    assert data.train.paths == (
        str(root / train / "0000/0000_000_01_0303morning_0015_0.jpg"),
        str(root / train / "0000/0000_001_02_0303noon_0006_1.jpg"),
        str(root / train / "0001/0001_000_14_0302morning_0006_0.jpg"),
    )
    assert data.train.pids.tolist() == [0, 0, 1] and data.train.cams.tolist() == [1, 2, 14]
    assert data.query.pids.tolist() == [5] and data.query.cams.tolist() == [7]
    assert data.gallery.paths[1] == str(root / test / "0005/0005_001_15_0113noon_0021_1.jpg")
    assert data.gallery.pids.tolist() == [4, 5] and data.gallery.cams.tolist() == [3, 15]


@pytest.mark.parametrize(
    ("encoding", "end"),
    [("utf-8", "\r\n"), ("utf-8-sig", "\n"), ("utf-8-sig", "\r\n\r\n"), ("utf-16", "\r\n"), ("utf-8", "\r"),
     ("latin-1", "\n")],
)  # fmt: skip
def test_msmt17_lists_of_any_encoding_and_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    write_msmt17(tmp_path, "train", "test")
    lines = ["", *MSMT17_LISTS["list_train.txt"], "0002/0002_000_03_ä_0006_0.jpg 2", " "]
    (tmp_path / "list_train.txt").write_bytes(end.join(lines).encode(encoding))
    train = build_dataset("msmt17", str(tmp_path)).train
    # A name that is no UTF-8 is the bytes that the list has, as those of files on disk are.
    last = (
        os.fsencode("0002_000_03_ä_0006_0.jpg") if encoding != "latin-1" else b"0002_000_03_\xe4_0006_0.jpg"
    )
    found = [os.fsencode(name) for name in names(train)]
    assert found == [
        b"0000_000_01_0303morning_0015_0.jpg", b"0000_001_02_0303noon_0006_1.jpg",
        b"0001_000_14_0302morning_0006_0.jpg", last,
    ]  # fmt: skip
    assert train.pids.tolist() == [0, 0, 1, 2] and train.cams.tolist() == [1, 2, 14, 3]


def test_msmt17_lists_that_are_no_text(tmp_path: Path) -> None:
    write_msmt17(tmp_path, "train", "test")
    for content, message in (
        (b"a\0b", r"list_train.txt' is no text: it has zero bytes"),
        (b"\xff\xfea", r"list_train.txt' is no UTF-16 text \(byte 0\)|byte 2"),
        (b"0001/0001_000_14_x.jpg " + b"9" * 5000, r"line 1 of '.*list_train.txt' is '0001/.*…', not a file"),
        (b"0001/0001_000_14_x.jpg", r"line 1 of '.*list_train.txt' is '0001/0001_000_14_x.jpg', not a file"),
        (b"1_1_1_" + b" " * 1_000_000 + b"x", r"line 1 of '.*list_train.txt' is '1_1_1_ *…', not a file"),
    ):
        (tmp_path / "list_train.txt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            build_dataset("msmt17", str(tmp_path))


def test_msmt17_names_a_bad_line_and_an_empty_list(tmp_path: Path) -> None:
    write_msmt17(tmp_path, "train", "test")
    (tmp_path / "list_query.txt").write_text("0005/0005_000_07_0303morning_0020_0.jpg 5\nnonsense 3\n")
    with pytest.raises(UserError, match=r"line 2 of .*list_query.txt.* is 'nonsense 3'"):
        build_dataset("msmt17", str(tmp_path))
    (tmp_path / "list_query.txt").write_text("\n")
    with pytest.raises(UserError, match=r"list_query\.txt' is empty"):
        build_dataset("msmt17", str(tmp_path))


def test_folder_needs_no_ids(tmp_path: Path) -> None:
    write_files(tmp_path, {"b": ["x.png"], "a/deep": ["y.jpg", "notes.txt"], ".": ["z.jpeg"]})
    data = build_dataset("folder", tmp_path)
    assert [Path(path).relative_to(tmp_path).as_posix() for path in data.train.paths] == [
        "a/deep/y.jpg",
        "b/x.png",
        "z.jpeg",
    ]
    assert data.train.pids is None and data.train.cams is None and data.query is None and data.gallery is None
    assert data.summary() == "dataset folder\n  train   3 images"


def test_folder_takes_cameras_from_a_pattern(tmp_path: Path) -> None:
    write_files(tmp_path, {"cam4": ["x.png", "y.png"], "cam9": ["x.png"]})
    data = build_dataset("folder", str(tmp_path), name_pattern=r"cam(?P<cam>\d)/")
    assert data.train.cams.tolist() == [4, 4, 9] and data.train.pids is None
    with pytest.raises(UserError, match=r"needs a group \(\?P<cam>"):
        build_dataset("folder", str(tmp_path), name_pattern="cam4")


def test_folder_follows_a_link_that_leads_back_only_once(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {"a": ["x.png"]})
    write_files(tmp_path / "elsewhere", {"b": ["y.png"]})
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    assert names(build_dataset("folder", str(tmp_path / "data")).train) == ["x.png", "y.png"]


def test_a_folder_that_cannot_be_read_is_named_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"a": ["x.png"], "b": ["y.png"]})
    listing = os.scandir

    def locked(folder: str) -> object:
        if os.path.basename(folder) == "b":
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"cannot read the folder '.*b': Permission denied"):
        build_dataset("folder", str(tmp_path))


def test_custom_numbers_named_identities_alike_in_all_splits(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "train/rex": ["cam1_0.jpg"],
            "train/ace": ["cam2_0.jpg"],
            "query/zoe": ["cam1_0.jpg"],
            "gallery/zoe": ["cam2_0.jpg"],
            "gallery/bob": ["cam2_0.jpg"],
        },
    )
    data = build_dataset("custom", str(tmp_path), name_pattern=r"(?P<pid>\w+)/cam(?P<cam>\d)_")
    assert data.train.pids.tolist() == [0, 2] and data.train.cams.tolist() == [2, 1]
    assert data.query.pids.tolist() == [3] and data.gallery.pids.tolist() == [1, 3]


def test_custom_reads_vehicle_folders_with_the_usual_names(tmp_path: Path) -> None:
    vehicles = {
        "image_train": ["0001_c001_00016450_0.jpg"],
        "image_query": ["0002_c002_00030600_0.jpg"],
        "image_test": ["0002_c003_00084280_0.jpg"],
    }
    data = build_dataset("custom", str(write_files(tmp_path, vehicles)))
    assert [data.train.pids[0], data.query.pids[0], data.gallery.pids[0]] == [1, 2, 2]
    assert [data.train.cams[0], data.query.cams[0], data.gallery.cams[0]] == [1, 2, 3]


def test_without_cameras_no_match_is_ignored(tmp_path: Path) -> None:
    write_files(tmp_path, {"train": ["1_a.jpg"], "query": ["2_a.jpg"], "gallery": ["2_b.jpg", "3_a.jpg"]})
    data = build_dataset("custom", str(tmp_path), name_pattern=r"(?P<pid>\d+)_")
    assert data.query.cams is None
    query_cams, gallery_cams = data.evaluation_cams()
    assert query_cams.tolist() == [0] and gallery_cams.tolist() == [1, 1]


def test_evaluation_cams_are_the_cameras_where_known(tmp_path: Path) -> None:
    data = build_dataset("market1501", str(write_files(tmp_path, MARKET_FILES)))
    assert [cams.tolist() for cams in data.evaluation_cams()] == [[1, 5], [1, 2, 2, 6]]


def test_camstyle_gives_each_image_its_other_cameras(tmp_path: Path) -> None:
    write_files(tmp_path, MARKET_FILES)
    styles = [
        "0002_c1s1_000451_03_fake_1to1.jpg",
        "0002_c1s1_000451_03_fake_1to2.jpg",
        "0002_c1s1_000451_03_fake_1to3.jpg",
        "0002_c2s1_000001_00.jpg_fake_2to1.jpg",
        "0009_c2s1_000001_00_fake_2to1.jpg",
    ]
    folder = tmp_path / "bounding_box_train_camstyle"
    write_files(tmp_path, {folder.name: styles})
    train = build_dataset("market1501", str(tmp_path), camstyle=True).train
    assert train.styles == (
        (str(folder / styles[1]), str(folder / styles[2])),
        (str(folder / styles[3]),),
        (),
    )
    assert train.summary() == "3 images, 2 identities, 3 cameras, 3 CamStyle files"
    assert train.select(np.array([False, True, True])).styles == ((str(folder / styles[3]),), ())
    assert build_dataset("market1501", str(tmp_path)).train.styles is None


def test_camstyle_of_msmt17_names_the_target_only(tmp_path: Path) -> None:
    write_msmt17(tmp_path, "train", "test")
    stem = "0000/0000_000_01_0303morning_0015_0"
    write_files(tmp_path, {"bounding_box_train_camstyle": [f"{stem}_fake_{cam}.jpg" for cam in (1, 2, 15)]})
    train = build_dataset("msmt17", str(tmp_path), camstyle=True).train
    assert [Path(path).stem[-2:] for path in train.styles[0]] == ["15", "_2"]
    assert train.styles[1:] == ((), ())


def test_camstyle_errors(tmp_path: Path) -> None:
    write_files(tmp_path, MARKET_FILES)
    with pytest.raises(UserError, match="bounding_box_train_camstyle"):
        build_dataset("market1501", str(tmp_path), camstyle=True)
    style = tmp_path / "bounding_box_train_camstyle" / "0009_c2s1_000001_00_fake_2to1.jpg"
    write_files(tmp_path, {style.parent.name: [style.name]})
    with pytest.raises(UserError, match="belongs to an image of the training split"):
        build_dataset("market1501", str(tmp_path), camstyle=True)
    style.with_name("0002_c1s1_000451_03.jpg").touch()
    with pytest.raises(UserError, match=r"0002_c1s1_000451_03\.jpg' is not <stem>_fake_"):
        build_dataset("market1501", str(tmp_path), camstyle=True)
    with pytest.raises(UserError, match="not the dataset folder"):
        build_dataset("folder", str(tmp_path), camstyle=True)


def test_a_name_that_does_not_match_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, MARKET_FILES)
    (tmp_path / "query" / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"query/holiday\.jpg' does not match"):
        build_dataset("market1501", str(tmp_path))


@pytest.mark.parametrize(
    "pattern", [r"(?P<pid>-?\d*)", r"_(?P<pid>\d)(?P<cam>\d*)", r"_(?P<pid>\d)(?P<cam>\s?)"]
)
def test_an_identity_or_camera_that_is_empty_does_not_match(pattern: str, tmp_path: Path) -> None:
    write_files(tmp_path, {split: ["alice_1 .jpg"] for split in ("train", "query", "gallery")})
    with pytest.raises(UserError, match=r"train/alice_1 \.jpg' does not match"):
        build_dataset("custom", str(tmp_path), name_pattern=pattern)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("market1501", {}, "looked for bounding_box_train, query, bounding_box_test in .*Market-1501"),
        ("market1501", {"query": ["0001_c1.jpg"]}, "lacks bounding_box_train, bounding_box_test"),
        ("msmt17", {"train": ["x.jpg"]}, "lacks test or mask_test_v2, list_train.txt"),
        ("custom", {"x": []}, "looked for train or bounding_box_train or image_train, query or"),
        ("folder", {"x": ["a.txt"]}, "holds no image"),
    ],
)
def test_a_wrong_layout_says_which_folders_were_looked_for(
    tmp_path: Path, name: str, files: dict[str, list[str]], message: str
) -> None:
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=message):
        build_dataset(name, str(tmp_path))


def test_a_name_in_its_own_case_goes_before_others(tmp_path: Path) -> None:
    splits = {"train": ["1_c1.jpg"], "Train": ["2_c1.jpg"], "TRAIN": ["3_c1.jpg"]}
    write_files(tmp_path, {**splits, "Query": ["4_c1.jpg"], "gallery": ["4_c2.jpg"]})
    data = build_dataset("custom", str(tmp_path))
    assert data.train.pids.tolist() == [1] and data.query.pids.tolist() == [4]
    (tmp_path / "train").rename(tmp_path / "image_train")  # the last of the names that this split may have
    with pytest.raises(
        UserError,
        match=r"has 'TRAIN', 'Train', which differ in case alone: name the right one 'train'$",
    ):
        build_dataset("custom", str(tmp_path))


def test_a_dataset_in_the_case_of_its_publication_goes_before_others(tmp_path: Path) -> None:
    for number, folder in enumerate(("MARKET-1501", "Market-1501", "market1501")):
        splits = {split: [f"{number}_c1.jpg"] for split in MARKET_FILES}
        write_files(tmp_path, {f"{folder}/{split}": files for split, files in splits.items()})
    assert build_dataset("market1501", str(tmp_path)).train.pids.tolist() == [1]


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {key: value for key, value in MARKET_FILES.items() if key != "query"})
    (tmp_path / "query").mkdir()
    with pytest.raises(UserError, match="query' holds no image"):
        build_dataset("market1501", str(tmp_path))


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "synthetic"])
def test_a_missing_data_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="nowhere' does not exist"):
        build_dataset(name, str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file' is a file"):
        build_dataset(name, str(tmp_path / "file"))
    with pytest.raises(UserError, match="--data-dir"):
        build_dataset(name, None)


def test_unknown_names_and_patterns_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dataset 'viper'; there are synthetic, market1501"):
        build_dataset("viper", str(tmp_path))
    with pytest.raises(UserError, match="not for market1501"):
        build_dataset("market1501", str(tmp_path), name_pattern="(?P<pid>x)")
    with pytest.raises(UserError, match="not a regular expression"):
        build_dataset("custom", str(tmp_path), name_pattern="(?P<pid>")
    with pytest.raises(UserError, match=r"needs a group \(\?P<pid>"):
        build_dataset("custom", str(tmp_path), name_pattern=r"(\d+)_c(\d+)")


def test_synthetic_is_drawn_where_told_and_read_as_market1501(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "generate", lambda root: write_files(Path(root) / "drawn", MARKET_FILES))
    data = build_dataset("synthetic", str(tmp_path))
    assert data.name == "synthetic" and data.train.pids.tolist() == [2, 2, 7]
    assert data.train.paths[0].startswith(str(tmp_path / "drawn"))


def test_image_set_checks_its_lengths() -> None:
    with pytest.raises(ValueError, match="pids has 1 entries for 2 paths"):
        ImageSet(("a", "b"), np.array([1]), None)


def test_what_pillow_reads_is_an_image_and_the_rest_is_counted(tmp_path: Path) -> None:
    read = ["a.jfif", "b.JPE", "c.TIF", "d.jpg.jpg", "e.jp2", "f.ppm", "g.Jpeg", "h.apng"]
    others = ["x.heic", "y.HEIF", "z.svg", ".hidden.jpg", "._a.jfif", "notes.txt", "Thumbs.db", ".DS_Store",
              "features.h5", "film.mpg", "figure.eps"]  # fmt: skip
    inside = ["@eaDir/a.jpg", "__MACOSX/a.jpg", ".thumbnails/a.jpg"]
    write_files(tmp_path, {".": [*read, *others, *inside], "folder.jpg": ["i.bmp"]})
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    train = build_dataset("folder", str(tmp_path)).train
    assert [os.path.relpath(path, tmp_path) for path in train.paths] == sorted(
        [*read, "folder.jpg/i.bmp", "gone.png", "self.png"]
    )
    assert train.summary() == (
        "11 images; left out: 3 folders with the name of a hidden one or of a system's (one is '.thumbnails'), "
        "1 hidden (one is '.hidden.jpg'), 4 of a format that Pillow does not read here (one is 'figure.eps'), "
        "2 pipes or devices (one is 'link.png')"
    )
    assert train.select(np.array([0])).left_out == train.left_out


def test_a_folder_that_is_reached_again_is_read_once_and_counted(tmp_path: Path) -> None:
    write_files(tmp_path, {"data/cam1": ["1.jpg", "2.jpg"], "other": ["3.jpg"]})
    for link, target in {"cam0": "cam1", "cam2": "../other", "cam3": "../other", "up": "."}.items():
        (tmp_path / "data" / link).symlink_to(target)
    train = build_dataset("folder", str(tmp_path / "data")).train
    assert [os.path.relpath(path, tmp_path / "data") for path in train.paths] == [
        "cam0/1.jpg",
        "cam0/2.jpg",
        "cam2/3.jpg",
    ]
    assert train.summary() == "3 images; left out: 3 folders read under another name (one is 'cam1')"


def test_images_whose_names_do_not_say_so_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b", "c.jpg~", "d.jpg.bak", "e.jpg_original", "f.1", ".g", "h.json", "._i"):
        Image.new("RGB", (4, 8)).save(tmp_path / name, "JPEG")
    for kind in ("PNG", "GIF", "TIFF", "WEBP"):
        Image.new("RGB", (4, 8)).save(tmp_path / f"of-{kind}", kind)
    (tmp_path / "text").write_text("no image")
    os.mkfifo(tmp_path / "pipe")
    train = build_dataset("folder", str(tmp_path)).train
    assert train.summary() == "1 image; left out: 9 without the ending of an image (one is 'b')"


def test_a_folder_of_images_that_pillow_does_not_read_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, {"x": ["1.heic", "2.ico", "3.icns", "4.iim", "5.blp"]})
    with pytest.raises(
        UserError, match=r"holds no image .*; left out: 5 of a format .* \(one is 'x/1\.heic'\)"
    ):
        build_dataset("folder", str(tmp_path))
