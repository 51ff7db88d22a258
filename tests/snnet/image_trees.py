"""Little trees of files in the layouts of datasets; the files are empty."""

from __future__ import annotations

from pathlib import Path

from snnet.data import ImageSet

MARKET_FILES = {
    "bounding_box_train": [
        "0007_c3s2_000001_01.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000001_00.jpg.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c5s1_000001_00.JPG"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c2s1_000001_01.jpeg",
        "0001_c2s1_000001_02.png",
        "0003_c6s1_000001_01.BMP",
    ],
}
MSMT17_LISTS = {
    "list_train.txt": ["0001/0001_000_14_0302morning_0006_0.jpg 1", "0000/0000_001_02_0303noon_0006_1.jpg 0"],
    "list_val.txt": ["0000/0000_000_01_0303morning_0015_0.jpg 0"],
    "list_query.txt": ["0005/0005_000_07_0303morning_0020_0.jpg 5"],
    "list_gallery.txt": ["0005/0005_001_15_0113noon_0021_1.jpg 5", "0004/0004_000_03_0113noon_0022_1.jpg 4"],
}


def write_files(root: Path, files: dict[str, list[str]]) -> Path:
    for folder, names in files.items():
        for name in names:
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()
    return root


def write_msmt17(root: Path, train: str, test: str) -> Path:
    for folder in (train, test):
        (root / folder).mkdir(parents=True)
    for name, lines in MSMT17_LISTS.items():
        (root / name).write_text("".join(line + "\n" for line in lines))
    return root


def names(split: ImageSet | None) -> list[str]:
    assert split is not None
    return [Path(path).name for path in split.paths]
