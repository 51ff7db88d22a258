"""``python -m snnet.label``: pseudo labels of any file of features, as sparse matrices."""

from __future__ import annotations

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import LabelCommand
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(LabelCommand.parse)

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import numpy as np
import torch

from snnet.checks import UNIT_SLACK
from snnet.config.options import config_from
from snnet.errors import UserError
from snnet.files.outputs import check_output
from snnet.retrieval.classes import (
    CLUSTERING,
    class_summary,
    component_classes,
    dbscan_classes,
    groups_from_names,
    require_extra,
)
from snnet.retrieval.feature_files import FeatureSet, load_features
from snnet.retrieval.sparse_labels import (
    LABEL_SETS,
    SparseLabels,
    SparseMatrix,
    predict_divided_labels,
    save_labels,
)
from snnet.runtime import check_same_options, choose_device, kernels_line, show_warnings_as_lines
from snnet.system.processes import ALONE, Processes, several_processes
from snnet.system.progress import say, set_quiet
from snnet.system.row_exchange import rows_of_all
from snnet.system.terminal import complain, tell
from snnet.training.label_quality import pairs_within, precision_and_recall
from snnet_kernels.distributed import own_rows
from snnet_kernels.version import __version__

# With more than this share of all images as other positives, a label probably joins several persons.
FULL_ROW = 0.1
# A class with more than this share of all images probably joins several persons.
FULL_CLASS = 1 / 3
# Where either is so, a setting is named that may be wrong.
UNLESS = "for these features, unless the images show very few persons"

Values = TypeVar("Values")


def main(command: LabelCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    with several_processes() as processes:
        found = label(command, processes)
    if found is None:
        return
    labels, pids = found
    tell(f"{command.output}: labels of {len(labels.y):,} images", *label_table(labels, pids).split("\n"))
    if labels.classes is not None:
        tell(class_summary(labels.classes, pids))


Labelled = tuple[SparseLabels, np.ndarray | None]


@overload
def label(command: LabelCommand) -> Labelled: ...
@overload
def label(command: LabelCommand, processes: Processes) -> Labelled | None: ...
def label(command: LabelCommand, processes: Processes = ALONE) -> Labelled | None:
    """Write the labels that ``command`` asks for; returns them, and the identities if the file has them.

    With several ``processes`` each holds a share of the features and predicts their labels. Rank 0 collects and writes
    the labels, finds the classes, and returns all; the others return None.

    Raises :class:`~snnet.errors.UserError` for a file that cannot be used. No error leaves a half-written file.
    """
    if processes.is_first:
        check_output(command.output, (".npz",), read=[command.features])
    if command.classes is not None:
        require_extra(command.classes)
    config = config_from(command.given)
    device, method = choose_device(config.runtime.device), config.method
    chosen = {
        "--key": command.key,
        "--classes": command.classes,
        "--group-pattern": command.group_pattern,
    }
    check_same_options(config, device, processes, chosen)
    group = processes.group(device, command.timeout)
    with processes.one_warns():
        content = load_features(command.features, command.key, rows=_own_part(processes))
    if processes.is_first and content.metadata.get("retrieval_feature") == "before":
        complain(
            f"warning: {command.features} has features from before the neck, and training compares those after it: "
            "for labels like those of training, use snnet.extract --retrieval-feature after"
        )
    names, pids = _of_all(content.names, processes), _of_all(content.pids, processes)
    groups = _groups(command, names, processes)
    say(kernels_line(device))
    options: dict[str, Any] = {"threshold": method.threshold, "min_rank": method.min_rank}
    features = torch.from_numpy(_of_length_one(content, processes)).to(device)
    del content
    processes.meet()
    labels = predict_divided_labels(features, processes, group, **options, groups=groups)
    classes, clustering = None, CLUSTERING | command.clustering if command.classes == "dbscan" else {}
    if command.classes == "dbscan":
        features = rows_of_all(features, processes).to(device)
    if labels is None:
        return None
    if command.classes == "components":
        classes = component_classes(labels.y)
    elif command.classes == "dbscan":
        classes = dbscan_classes(features, **clustering)
    metadata = {"made_by": f"snnet {__version__}", **options, **_asked_for(command), **clustering}
    labels = dataclasses.replace(
        labels,
        names=None if names is None else tuple(itertools.chain(*names)),
        classes=classes,
        metadata=metadata,
    )
    save_labels(command.output, labels)
    full = int((_others(labels.y) > FULL_ROW * len(labels.y)).sum())
    if full > len(labels.y) / 2:
        complain(
            f"warning: {full:,} of {len(labels.y):,} images have more than {FULL_ROW:.0%} of all as positives: "
            f"--threshold {method.threshold} is low {UNLESS}"
        )
    if classes is not None:
        settings = f"--threshold {method.threshold} is low"
        if command.classes == "dbscan":
            settings = f"--k1 {clustering['k1']} or --eps {clustering['eps']} is high"
        _warn_of_full_class(classes, settings)
    return labels, None if pids is None else np.concatenate(pids)


def _own_part(processes: Processes) -> Callable[[int], range] | None:
    """A function of the number of images: which of them this process loads. None: all."""
    if not processes.are_several:
        return None
    return lambda images: own_rows(images, processes.rank, processes.count)


def _of_all(values: Values | None, processes: Processes) -> list[Values] | None:
    """On rank 0 the values that all processes loaded; None if the file has none."""
    found = processes.gathered(values)
    return None if found is None or values is None else found


def _groups(
    command: LabelCommand, names: list[tuple[str, ...]] | None, processes: Processes
) -> np.ndarray | None:
    """The group of each image, if ``command`` asks for groups; rank 0 finds the groups in all names."""
    if command.group_pattern is None:
        return None
    found = None
    if processes.is_first:
        if names is None:
            raise UserError(f"{command.features} has no names of images for --group-pattern to search in")
        found = groups_from_names(tuple(itertools.chain(*names)), command.group_pattern)
    return processes.everywhere(found)[0]


def _warn_of_full_class(classes: np.ndarray, settings: str) -> None:
    """Warn where one class has so many images that it joins several persons; ``settings`` says what may be wrong."""
    largest = int(np.bincount(classes[classes >= 0]).max(initial=0))
    if largest > FULL_CLASS * len(classes):
        complain(f"warning: one class has {largest:,} of {len(classes):,} images: {settings} {UNLESS}")


def _asked_for(command: LabelCommand) -> dict[str, Any]:
    """What the metadata of the file says about classes and groups."""
    asked = {"classes": command.classes, "group_pattern": command.group_pattern}
    return {name: value for name, value in asked.items() if value is not None}


def label_table(labels: SparseLabels, pids: np.ndarray | None) -> str:
    """Positives per row, agreement (intersection over union) with y, and precision and recall against ``pids``."""
    lines = [
        f"{'':<7}{'positives a row':>24}{'agreement':>11}",
        f"{'':<7}{'mean':>12}{'most':>12}{'with y':>11}",
    ]
    if pids is not None:
        lines = [lines[0] + f"{'precision':>11}{'recall':>9}", lines[1] + f"{'in %':>11}{'in %':>9}"]
    for name in LABEL_SETS:
        matrix = getattr(labels, name)
        counts = matrix.counts()
        shared = labels.y.intersection_counts(matrix)
        agreement = (shared / np.maximum(labels.y.counts() + counts - shared, 1)).mean()
        line = f"{name:<7}{counts.mean():>12.2f}{counts.max():>12,}{agreement:>11.3f}"
        if pids is not None:
            precision, recall = _quality(matrix, pids)
            line += f"{precision:>11}{recall:>9}"
        lines.append(line)
    return "\n".join(lines)


def _others(matrix: SparseMatrix) -> np.ndarray:
    """The number of ones in each row, without the image itself: int64 [n]."""
    rows = np.repeat(np.arange(len(matrix)), matrix.counts())
    return np.bincount(rows[rows != matrix.indices], minlength=len(matrix))


def _quality(matrix: SparseMatrix, pids: np.ndarray) -> tuple[str, str]:
    """Precision and recall in percent over pairs of different images; "-" where there is no such pair.

    An image with pid -1 (junk) has no identity: each of its pairs is wrong.
    """
    rows = np.repeat(np.arange(len(matrix)), matrix.counts())
    pairs = rows != matrix.indices
    same = (pids[rows] == pids[matrix.indices]) & (pids[rows] >= 0)
    correct = int(same[pairs].sum())
    return precision_and_recall(correct, int(pairs.sum()), pairs_within(pids))


def _of_length_one(content: FeatureSet, processes: Processes) -> np.ndarray:
    """The features of this process: unchanged if all rows of all processes have length 1, else L2-normalised in place.

    A zero row stays zero.
    """
    features = content.features
    # In float64, which holds the square of every float32.
    squares = np.einsum("nd,nd->n", features, features, dtype=np.float64)
    lengths = np.sqrt(squares)[:, None]
    own = int(((np.abs(lengths - 1) > UNIT_SLACK) & (lengths > 0)).sum())
    far, images = (sum(counts) for counts in zip(*processes.everywhere((own, len(lengths))), strict=True))
    if far > 0:
        say(f"{far:,} of {images:,} features are not of length 1: all are normalised")
        np.divide(features, np.where(lengths > 0, lengths, 1.0), out=features, casting="same_kind")
    return features


if __name__ == "__main__":
    run_command(lambda: main(command))
