"""The datasets by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from snnet.config.options import DataConfig, DatasetName
from snnet.data.cuhk03 import find_raw, read_raw_cuhk03
from snnet.data.finding import candidates, find_entry
from snnet.data.image_set import ImageSet, ReIDDataset
from snnet.data.names import NamePattern
from snnet.data.readers import (
    CUSTOM_SPLITS,
    MARKET_PATTERN,
    MARKET_SPLITS,
    VERI_SPLITS,
    read_folder,
    read_msmt17,
    read_named_splits,
)
from snnet.errors import UserError
from snnet.files.paths import expand_home
from snnet.synthetic import generate
from snnet.system.progress import say

__all__ = ["DATASETS", "ImageSet", "ReIDDataset", "build_dataset", "dataset_of"]

DATASETS: tuple[str, ...] = get_args(DatasetName)

FOLDER_NAMES = {
    "market1501": ("Market-1501-v15.09.15", "Market-1501"),
    "dukemtmc": ("DukeMTMC-reID", "DukeMTMC"),
    "msmt17": ("MSMT17_V1", "MSMT17_V2", "MSMT17"),
    "cuhk03": ("detected", "labeled", "CUHK03-NP", "CUHK03"),
    "veri776": ("VeRi", "VeRi-776"),
}


def dataset_of(data: DataConfig, *, camstyle: bool = False) -> ReIDDataset:
    """:func:`build_dataset` of a configuration; says what was found. ``camstyle``: also read the CamStyle images."""
    found = build_dataset(data.dataset, data.data_dir, name_pattern=data.name_pattern, camstyle=camstyle)
    say(*found.summary().split("\n"))
    return found


def build_dataset(
    name: str, data_dir: str | Path | None, *, name_pattern: str | None = None, camstyle: bool = False
) -> ReIDDataset:
    """Find and read a dataset. Files are listed in the order of their paths; none is opened.

    An image is a file whose ending is that of a format that Pillow decodes on this machine. :attr:`ImageSet.left_out`
    says which files look like images and were left out. A negative identity is junk: it becomes -1, and its images are
    not trained on.

    Args:
        name: one of :data:`DATASETS`.

            - ``market1501``, ``dukemtmc``: ``bounding_box_train``, ``query``, ``bounding_box_test`` with
              names like ``0002_c1s1_000451_03.jpg``.
            - ``cuhk03``: the 767/700 split in the same layout, under ``detected`` or ``labeled``; where both
              are below ``data_dir``, ``detected`` is read.
              Where that is not there, the same split of torchreid's folders: ``images_detected`` or ``images_labeled``
              by the first split of ``splits_new_detected.json`` or ``splits_new_labeled.json``.
            - ``cuhk03-classic``: the first of the 20 splits with 100 test identities in torchreid's folders; all images
              of a test identity are queries and gallery images.
            - ``veri776``: ``image_train``, ``image_query``, ``image_test`` with names like
              ``0002_c002_00030600_0.jpg``; vehicles, scored by the same rules.
            - ``msmt17``: both public releases; the training split is ``list_train`` and ``list_val`` together, 32,621
              images.
            - ``folder``: any tree of crops without identities. No evaluation.
            - ``custom``: folders ``train``, ``query``, ``gallery`` and a ``name_pattern``.
            - ``synthetic``: drawn on first use.
        data_dir: the folder of the dataset, or one above it under which it has its usual name; for
            ``synthetic`` where to draw it (None: a cache folder of the user's).
        name_pattern: for ``custom`` a regular expression searched in each file's path below its split's
            folder, with groups ``pid`` and ``cam`` (default: Market-1501's). Where the matches are not all
            integers they are numbered, junk aside. Without ``cam``, cameras are unknown. For ``folder`` it may have a
            group ``cam``.
        camstyle: also read the CamStyle images from ``bounding_box_train_camstyle``.

    Raises:
        UserError: the data are not there, or not in the layout that ``name`` stands for.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; there are {', '.join(DATASETS)}")
    if name_pattern is not None and name not in ("custom", "folder"):
        raise UserError(f"a name pattern is for the datasets custom and folder, not for {name}")
    if camstyle and name in ("folder", "cuhk03-classic"):
        raise UserError(
            f"CamStyle needs a dataset with cameras and a training folder, not the dataset {name}"
        )
    data_dir = None if data_dir is None else str(data_dir)
    if name == "synthetic":
        return read_named_splits(name, str(generate(data_dir)), camstyle=camstyle)
    if data_dir is None:
        raise UserError(f"dataset {name} needs a data folder (--data-dir)")
    data_dir = expand_home(str(data_dir))
    if name == "msmt17":
        return read_msmt17(name, data_dir, FOLDER_NAMES[name], camstyle=camstyle)
    if name == "cuhk03-classic":
        return read_raw_cuhk03(name, data_dir, FOLDER_NAMES["cuhk03"], "classic")
    if name == "cuhk03" and not camstyle and _is_raw(name, data_dir):
        return read_raw_cuhk03(name, data_dir, FOLDER_NAMES[name], "new")
    if name == "folder":
        pattern = None if name_pattern is None else NamePattern(name_pattern, pid_required=False)
        return read_folder(name, data_dir, pattern)
    if name == "custom":
        pattern = NamePattern(MARKET_PATTERN if name_pattern is None else name_pattern)
        return read_named_splits(name, data_dir, splits=CUSTOM_SPLITS, pattern=pattern, camstyle=camstyle)
    splits = VERI_SPLITS if name == "veri776" else MARKET_SPLITS
    return read_named_splits(name, data_dir, FOLDER_NAMES[name], splits=splits, camstyle=camstyle)


def _is_raw(name: str, data_dir: str) -> bool:
    """Whether CUHK03 is there in torchreid's folders alone."""
    names, splits = FOLDER_NAMES[name], MARKET_SPLITS[0]
    return find_raw(name, data_dir, names) is not None and not any(
        find_entry(folder, splits) for folder in candidates(data_dir, names)
    )
