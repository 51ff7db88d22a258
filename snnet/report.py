"""``python -m snnet.report RUN``: what a run has measured as one HTML page, and its pictures as PNG."""

from __future__ import annotations

import sys

from snnet.errors import UserError, run_command
from snnet.flags import answer_early
from snnet.tool_flags import ReportCommand, parse_report_command

if __name__ == "__main__":
    answer_early(parse_report_command)

import dataclasses
from pathlib import Path
from typing import Any

from snnet.checkpoint import image_fingerprint, load_checkpoint
from snnet.data import ReIDDataset, build_dataset
from snnet.features import decode, decode_retrieval_set, retrieval_features
from snnet.outputs import check_output_folder, write_bytes, write_text
from snnet.progress import say, set_quiet
from snnet.reporting import pictures
from snnet.reporting.chart import draw
from snnet.reporting.curves import curves
from snnet.reporting.drawing import to_png
from snnet.reporting.page import Contents, page
from snnet.reporting.pictures import Lists
from snnet.reporting.ranked import has_labels, label_lists, rank_lists
from snnet.reporting.run import load_run
from snnet.runtime import show_warnings_as_lines
from snnet.trained import load_trained_model

PAGE_FILE = "report.html"
PICTURES = (
    "loss", "retrieval", "label_quality", "label_agreement", "positives", "seconds",
    "ranked_lists", "failures", "pseudo_labels",
)  # fmt: skip


def main() -> None:
    show_warnings_as_lines()
    command = parse_report_command(sys.argv[1:])
    set_quiet(command.quiet)
    print(report(command))


def report(command: ReportCommand) -> Path:
    """Write the page and its pictures; returns the page's path.

    Images are left out, and the page says why, where the checkpoint or the dataset cannot be used. Raises
    :class:`~snnet.errors.UserError` where there is no run, a data folder that was named cannot be used, or the
    report cannot be written.
    """
    contents = Contents(load_run(command.run))
    check_output_folder(command.output, "--output")
    if command.images:
        add_images(contents, command)
    else:
        reason = "Images of the dataset were left out (--no-images)."
        contents.missing = {"ranked": reason, "labels": reason}
    contents.charts = curves(contents.run)
    _write(contents, command.output)
    return command.output / PAGE_FILE


def add_images(contents: Contents, command: ReportCommand) -> None:
    """Fill in what needs the checkpoint and the dataset, each part by itself."""
    run = contents.run
    try:
        checkpoint = load_checkpoint(run.checkpoint)
    except UserError as error:
        reason = f"Not shown, for want of a checkpoint: {error}."
        contents.missing |= {"ranked": reason, "labels": reason}
        return
    contents.run = run = dataclasses.replace(run, before=run.before or checkpoint["before"])
    data = run.config.data
    try:
        folder = command.options.get("data_dir") or data.data_dir
        dataset = build_dataset(data.dataset, folder, name_pattern=data.name_pattern)
    except UserError as error:
        if "data_dir" in command.options:
            raise
        reason = f"Not shown, for want of the images: {error}."
        contents.missing |= {"ranked": reason, "labels": reason}
        return
    say(dataset.summary())
    for name, add in (("ranked", _add_rankings), ("labels", _add_labels)):
        try:
            add(contents, dataset, checkpoint, command)
        except UserError as error:
            contents.missing[name] = f"Not shown: {error}."


def _add_rankings(
    contents: Contents, dataset: ReIDDataset, checkpoint: dict[str, Any], command: ReportCommand
) -> None:
    """Rank the gallery with the checkpoint's network."""
    trained = load_trained_model(contents.run.checkpoint, None, command.options)
    config = trained.config
    retrieval = decode_retrieval_set(dataset, config)
    if retrieval is None:
        raise UserError(f"dataset {dataset.name} has no queries and no gallery with identities")
    features = retrieval_features(trained.model, retrieval, config, trained.placement)
    found = rank_lists(
        *features, retrieval, config.output.average_precision, lists=command.lists, length=command.top_k
    )
    splits = retrieval.query, retrieval.gallery
    key = "Green, whole frame and ✓: right; red, broken frame and ✗: wrong. Below: camera and cosine similarity."
    contents.retrieval = found
    if not found.counted:
        raise UserError("no query has a match in the gallery")
    contents.ranked = Lists(
        "ranked_lists",
        "Ranked lists",
        f"{len(found.sample)} of these queries, evenly spread over the dataset's order, not chosen by how they "
        f"turned out. {key}",
        found.sample,
        *splits,
        "query",
    )
    if found.failures:
        contents.failures = Lists(
            "failures",
            "Hardest failures",
            "The queries whose first right image comes last; where that is further down, the list ends with it. "
            + key,
            found.failures,
            *splits,
            "query",
        )


def _add_labels(
    contents: Contents, dataset: ReIDDataset, checkpoint: dict[str, Any], command: ReportCommand
) -> None:
    """Show what the label memory holds, without running the network."""
    images = decode(dataset.train, contents.run.config)
    if image_fingerprint(images.images.paths) != checkpoint["images"]:
        raise UserError("the training images that were found are not those of the run")
    head = checkpoint["head"]
    if not has_labels(head):
        raise UserError("no labels have been predicted yet: the checkpoint is of the warm-up")
    known = " Green and ✓, red and ✗: whether it is the same person, which training never sees."
    contents.labels = Lists(
        "pseudo_labels",
        "Pseudo labels",
        "Training images, evenly spread, and those most like them in the exemplar memory. A bar below the image and "
        "a P: the label memory has it as a positive." + (known if images.images.pids is not None else ""),
        label_lists(head, images, lists=command.lists, length=command.top_k),
        images,
        images,
        "image",
    )


def _write(contents: Contents, folder: Path) -> None:
    """The pictures, then the page; pictures of an earlier report that are in this one no more are deleted."""
    drawn = {chart.name: to_png(draw(chart)) for chart in contents.charts}
    lists = (contents.ranked, contents.failures, contents.labels)
    folder.mkdir(parents=True, exist_ok=True)
    drawn |= {one.name: pictures.to_png(one) for one in lists if one is not None}
    for name in PICTURES:
        path = folder / f"{name}.png"
        if name in drawn:
            write_bytes(path, drawn[name])
        else:
            path.unlink(missing_ok=True)
    write_text(folder / PAGE_FILE, page(contents))


if __name__ == "__main__":
    run_command(main)
