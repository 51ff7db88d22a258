"""``python -m snnet.extract``: the features of a dataset or a folder of crops, in a file."""

from __future__ import annotations

import sys

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import ExtractCommand, Split
from snnet.errors import UserError
from snnet.system.command import answer_early, run_command

if __name__ == "__main__":
    answer_early(ExtractCommand.parse)

import os
from typing import Any, get_args, overload

import numpy as np

from snnet.data import ImageSet, ReIDDataset, dataset_of
from snnet.files.outputs import check_output
from snnet.files.paths import expand_home
from snnet.retrieval.feature_files import SUFFIXES, FeatureSet, save_features
from snnet.retrieval.features import decode
from snnet.retrieval.trained import TrainedModel, load_trained_model
from snnet.runtime import show_warnings_as_lines
from snnet.system.processes import ALONE, Processes, several_processes
from snnet.system.progress import set_quiet
from snnet.system.terminal import tell


def main() -> None:
    show_warnings_as_lines()
    command = ExtractCommand.parse(sys.argv[1:])
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
        check_output(command.output, SUFFIXES)
    trained = load_trained_model(command.checkpoint, command.preset, command.given)
    processes.check_device(trained.placement.device)
    data = trained.config.data
    dataset = processes.first_ahead(lambda: dataset_of(data))
    folder = _folder(dataset, data.data_dir if data.dataset == "folder" else None)
    parts: list[FeatureSet] = []
    for name, images in _chosen(dataset, command.split).items():
        share = np.array(processes.share(len(images), data.batch_size), dtype=np.int64)
        found = processes.gathered(_split_features(trained, images.select(share), name, folder, processes))
        parts += found or []
    if not processes.is_first:
        return None
    content = _joined(parts, metadata={"dataset": data.dataset, **trained.description()})
    save_features(command.output, content)
    return content


def _chosen(dataset: ReIDDataset, split: str) -> dict[str, ImageSet]:
    splits = {name: getattr(dataset, name) for name in get_args(Split) if name != "all"}
    found = {name: images for name, images in splits.items() if images is not None}
    if split == "all":
        return found
    if split not in found:
        raise UserError(f"--split {split}: dataset {dataset.name} has only {', '.join(found)}")
    return {split: found[split]}


def _split_features(
    trained: TrainedModel, images: ImageSet, split: str, folder: str, processes: Processes
) -> FeatureSet:
    decoded = decode(images, trained.config)
    features = trained.features(decoded, processes)
    kept = decoded.images
    names = tuple(os.path.relpath(path, folder).replace(os.sep, "/") for path in kept.paths)
    return FeatureSet(features.cpu().numpy(), names, kept.pids, kept.cams, (split,) * len(kept))


def _joined(parts: list[FeatureSet], metadata: dict[str, Any]) -> FeatureSet:
    def together(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    return FeatureSet(
        np.concatenate([part.features for part in parts]),
        tuple(name for part in parts for name in part.names or ()),
        together("pids"),
        together("camids"),
        tuple(split for part in parts for split in part.splits or ()),
        metadata,
    )


def _folder(dataset: ReIDDataset, data_dir: str | None) -> str:
    """The folder that names are relative to: that of the whole dataset, for any split."""
    if data_dir is not None:
        return expand_home(data_dir)
    splits = [images for images in (dataset.train, dataset.query, dataset.gallery) if images is not None]
    return os.path.commonpath([os.path.dirname(path) for images in splits for path in images.paths])


if __name__ == "__main__":
    run_command(main)
