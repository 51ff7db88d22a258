"""``python -m snnet.report RUN``: a report of a run as one HTML page, and its pictures as PNG."""

from __future__ import annotations

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import ReportCommand
from snnet.errors import UserError
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(ReportCommand.parse)

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from snnet.config.options import Config, flatten
from snnet.config.resolve import config_from_run
from snnet.data import ReIDDataset, dataset_of, decode_images
from snnet.files.outputs import check_output_folder, write_bytes, write_text
from snnet.files.own_files import REPORT_MARK, REPORT_PICTURES, check_own
from snnet.reporting.charts import render
from snnet.reporting.curves import curves
from snnet.reporting.list_rows import rows
from snnet.reporting.page import Contents, page
from snnet.reporting.pictures import draw_rows, png_file
from snnet.reporting.ranked import has_labels, label_lists, rank_lists
from snnet.reporting.run import load_run, ranks_of
from snnet.retrieval.features import decode_retrieval_set, retrieval_features
from snnet.retrieval.trained import load_trained_model
from snnet.runtime import choose_device, show_warnings_as_lines
from snnet.system.progress import set_quiet
from snnet.system.terminal import tell
from snnet.training.checkpoint import has_same_images, image_fingerprint, label_state, picture_fingerprint
from snnet.training.pieces import load_whole_checkpoint

PAGE_FILE = "report.html"
_PARTS = {"ranked": "ranked lists", "labels": "pseudo labels"}  # that need images
_OTHER_IMAGES = "the training images that were found are not those of the run"
_NOTHING_TO_RANK = "Not shown: the dataset has no queries and no gallery with identities."


def main(command: ReportCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    tell(report(command))


def report(command: ReportCommand) -> Path:
    """Write the page and its pictures; returns the page's path.

    If the checkpoint or the dataset cannot be used, images are left out; the page and a warning say why. Files of an
    earlier report are replaced; those that this report does not have are deleted. Raises
    :class:`~snnet.errors.UserError` if there is no run, if a given device or data folder cannot be used, if the report
    cannot be written, or if a file with one of its names exists that no report wrote.
    """
    contents = Contents(load_run(command.run))
    check_output_folder(command.folder, "--output")
    _check_own(command.folder)
    if command.no_images:
        contents.missing = dict.fromkeys(_PARTS, "Images of the dataset were left out (--no-images).")
    else:
        add_images(contents, command)
        _warn_of_missing(contents.missing)
    _write(contents, command.folder)
    return command.folder / PAGE_FILE


def add_images(contents: Contents, command: ReportCommand) -> None:
    """Add the parts that need the checkpoint and the dataset, each independently of the others."""
    run = contents.run
    choose_device(command.given.get("device", "auto"))  # no part can do without one that was asked for
    config = config_from_run(flatten(run.config), command.given)
    lacking = "a checkpoint"
    try:
        checkpoint = load_whole_checkpoint(run.checkpoint)
        before = run.before or ranks_of(checkpoint["before"], f"{run.checkpoint}: before")
        contents.run = dataclasses.replace(run, before=before)
        contents.checkpoint_epochs = len(checkpoint["metrics"])
        lacking = "the images"
        dataset = dataset_of(config.data)
    except UserError as error:
        if lacking == "the images" and "data_dir" in command.given:
            raise
        contents.missing = dict.fromkeys(_PARTS, f"Not shown, for want of {lacking}: {error}.")
        return
    for name, add in (("ranked", _add_rankings), ("labels", _add_labels)):
        try:
            add(contents, dataset, checkpoint, config, command)
        except UserError as error:
            contents.missing[name] = f"Not shown: {error}."


def _warn_of_missing(missing: dict[str, str]) -> None:
    """Warn once of each reason for which a part is not shown."""
    for reason in dict.fromkeys(missing.values()):
        if reason == _NOTHING_TO_RANK:
            continue  # as is usual for a folder of crops
        parts = " and ".join(_PARTS[name] for name in missing if missing[name] == reason)
        warnings.warn(f"{parts}: {reason[0].lower()}{reason[1:-1]}", stacklevel=3)


def _add_rankings(
    contents: Contents,
    dataset: ReIDDataset,
    checkpoint: dict[str, Any],
    config: Config,
    command: ReportCommand,
) -> None:
    """Rank the gallery with the network of the checkpoint."""
    retrieval = decode_retrieval_set(dataset, config)
    if retrieval is None:
        contents.missing["ranked"] = _NOTHING_TO_RANK
        return
    trained = load_trained_model(contents.run.checkpoint, None, command.given, contents=checkpoint)
    features = retrieval_features(trained, retrieval)
    definition = config.output.average_precision
    found = rank_lists(*features, retrieval, definition, lists=command.lists, length=command.top_k)
    if not found.counted:
        raise UserError("no query has a match in the gallery")
    images = retrieval.query.images, retrieval.gallery.images
    sample, failures = (rows(lists, *images, "query") for lists in (found.sample, found.failures))
    contents.lists |= {"ranked_lists": sample, "failures": failures}
    contents.retrieval = found


def _add_labels(
    contents: Contents,
    dataset: ReIDDataset,
    checkpoint: dict[str, Any],
    config: Config,
    command: ReportCommand,
) -> None:
    """Show the content of the label memory, without running the network. Only images that are shown are decoded."""
    images = dataset.train
    if config.data.skip_bad_images and not has_same_images(checkpoint, image_fingerprint(images.paths)):
        images = decode_images(images, skip_bad=True, cache=False).images  # as the run did
    names = image_fingerprint(images.paths)
    if not has_same_images(checkpoint, names):
        raise UserError(_OTHER_IMAGES)
    memory, labels = label_state(checkpoint, len(images), contents.run.checkpoint)
    if not has_labels(labels):
        if contents.checkpoint_epochs <= config.method.label_start_epoch:
            raise UserError("no labels have been predicted yet: the checkpoint is of the warm-up")
        raise UserError("no image has another as positive")
    lists = label_lists(memory, labels, images, lists=command.lists, length=command.top_k)
    drawn = rows(lists, images, images, "image")  # names one that is damaged
    if not has_same_images(checkpoint, names, picture_fingerprint(config.data.dataset, images.paths)):
        raise UserError(_OTHER_IMAGES)
    contents.lists["pseudo_labels"] = drawn
    contents.identities_known = images.pids is not None


def _check_own(folder: Path) -> None:
    """Refuse a folder in which a file that no report wrote has a name that reports use."""
    for name in (PAGE_FILE, *REPORT_PICTURES):
        check_own(folder / name, REPORT_MARK, "another folder with --output")


def _write(contents: Contents, folder: Path) -> None:
    """Write the pictures, then the page; delete pictures of an earlier report that this one does not have."""
    contents.charts = curves(contents.run)
    drawn = {}
    for name, chart in contents.charts.items():
        contents.svg[name], drawn[f"{name}.png"] = render(chart)
    for name, lists in contents.lists.items():
        if lists:
            drawn[f"{name}.png"] = png_file(draw_rows(tiles for _, tiles in lists), REPORT_MARK)
    text = page(contents)
    folder.mkdir(parents=True, exist_ok=True)
    _check_own(folder)
    for name, content in drawn.items():
        write_bytes(folder / name, content)
    for name in set(REPORT_PICTURES) - drawn.keys():
        (folder / name).unlink(missing_ok=True)
    write_text(folder / PAGE_FILE, text)


if __name__ == "__main__":
    run_command(lambda: main(command))
