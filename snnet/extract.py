"""``python -m snnet.extract``: the features of a dataset or a folder of crops, in a file."""

from __future__ import annotations

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import ExtractCommand, Split
from snnet.errors import UserError
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(ExtractCommand.parse)

import dataclasses
import os
from pathlib import Path
from typing import get_args, overload

import numpy as np

from snnet.data import ImageSet, ReIDDataset, dataset_of
from snnet.files.outputs import check_disk, check_output
from snnet.files.paths import expand_home
from snnet.retrieval.feature_files import SUFFIXES, FeatureSet, check_header, save_features
from snnet.retrieval.features import check_same_images, decode_share
from snnet.retrieval.trained import load_trained_model
from snnet.runtime import show_warnings_as_lines
from snnet.system.processes import ALONE, Processes, several_processes
from snnet.system.progress import set_quiet
from snnet.system.row_exchange import rows_of_all
from snnet.system.terminal import tell


def main(command: ExtractCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    with several_processes() as processes:
        content = extract(command, processes)
    if content is None:
        return
    images, dimensions = content.features.shape
    tell(f"{command.output}: {images:,} features of {dimensions} dimensions")


@overload
def extract(command: ExtractCommand) -> FeatureSet: ...
@overload
def extract(command: ExtractCommand, processes: Processes) -> FeatureSet | None: ...
def extract(command: ExtractCommand, processes: Processes = ALONE) -> FeatureSet | None:
    """Write the features that ``command`` asks for, and return them.

    With several ``processes`` each extracts its share. Rank 0 writes and returns all, the others return None.

    Raises :class:`~snnet.errors.UserError` for a checkpoint, weights, data or an output file that cannot be used. No
    error leaves a half-written file.
    """
    if processes.is_first:
        check_output(command.output, SUFFIXES, read=command.network_files)
    with processes.one_warns():
        trained = load_trained_model(command.checkpoint, command.preset, command.given)
    processes.check_device(trained.placement.device)
    trained.check_same(processes, {"--split": command.split})
    data = trained.config.data
    dataset = _numbered(processes.first_ahead(lambda: dataset_of(data)))
    check_same_images(dataset, processes)
    folder = _folder(dataset, data.data_dir if data.dataset == "folder" else None)
    chosen = _chosen(dataset, command.split)
    if processes.is_first:
        _check_room(command.output, chosen, folder, trained.model.feature_dim)
    features: list[np.ndarray] = []
    images: list[ImageSet] = []  # those that were decoded, in the order of the features
    splits: list[str] = []
    for split, found in chosen.items():
        decoded, kept = decode_share(found, trained.config, processes)
        features.append(rows_of_all(trained.features(decoded, processes), processes).cpu().numpy())
        del decoded  # before the images of the next split are
        images.append(kept)
        splits += [split] * len(kept)
    if not processes.is_first:
        return None
    whole = ImageSet.joined(images)
    metadata = {"dataset": data.dataset, **trained.description()}
    names = _names(whole, folder)
    content = FeatureSet(_joined(features), names, whole.pids, whole.cams, tuple(splits), metadata)
    save_features(command.output, content)
    return content


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """The rows of all ``parts``, each of which is taken from the list when its rows are in their place."""
    if len(parts) == 1:
        return parts.pop()
    whole = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    end = len(whole)
    while parts:
        rows = parts.pop()
        whole[end - len(rows) : end] = rows
        end -= len(rows)
    return whole


def _numbered(dataset: ReIDDataset) -> ReIDDataset:
    """The dataset with one number for each person over all splits, as the written file has them.

    MSMT17 numbers training and test identities from 0 each: here the latter follow the former. The gallery of
    Market-1501, and that of the built-in set, has distractors under the number 0, which no query has: each gets a
    number of its own.
    """
    train, query, gallery = dataset.train.pids, dataset.query, dataset.gallery
    if train is None or query is None or gallery is None or query.pids is None or gallery.pids is None:
        return dataset
    asked, ranked = query.pids, gallery.pids
    if dataset.name == "msmt17":
        asked, ranked = (np.where(pids < 0, pids, pids + train.max() + 1) for pids in (asked, ranked))
    elif dataset.name in ("market1501", "synthetic"):
        alone = (ranked == 0) & (0 not in asked)
        highest = max(pids.max() for pids in (train, asked, ranked))
        ranked = np.where(alone, highest + np.cumsum(alone), ranked)
    query, gallery = dataclasses.replace(query, pids=asked), dataclasses.replace(gallery, pids=ranked)
    return dataclasses.replace(dataset, query=query, gallery=gallery)


def _chosen(dataset: ReIDDataset, split: str) -> dict[str, ImageSet]:
    splits = {name: getattr(dataset, name) for name in get_args(Split) if name != "all"}
    found = {name: images for name, images in splits.items() if images is not None}
    if split == "all":
        return found
    if split not in found:
        raise UserError(f"--split {split}: dataset {dataset.name} has only {', '.join(found)}")
    return {split: found[split]}


def _check_room(output: Path, chosen: dict[str, ImageSet], folder: str, dim: int) -> None:
    """Raise :class:`~snnet.errors.UserError` where the features do not fit onto the disk, or names into the header."""
    images = sum(map(len, chosen.values()))
    check_disk(output, 4 * images * dim, f"{images:,} features of {dim} dimensions")
    if output.suffix == ".safetensors":
        names = [name for found in chosen.values() for name in _names(found, folder)]
        check_header(output, names, [split for split, found in chosen.items() for _ in found.paths])


def _names(images: ImageSet, folder: str) -> tuple[str, ...]:
    """The files, relative to ``folder``."""
    return tuple(os.path.relpath(path, folder).replace(os.sep, "/") for path in images.paths)


def _folder(dataset: ReIDDataset, data_dir: str | None) -> str:
    """The folder that names are relative to: that of the whole dataset, for any split."""
    if data_dir is not None:
        return expand_home(data_dir)
    splits = [images for images in (dataset.train, dataset.query, dataset.gallery) if images is not None]
    return os.path.commonpath([os.path.dirname(path) for images in splits for path in images.paths])


if __name__ == "__main__":
    run_command(lambda: main(command))
