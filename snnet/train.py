"""``python -m snnet.train``: train SNNet without labels. ``--help`` explains every flag."""

from __future__ import annotations

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import TrainCommand
from snnet.config.resolve import RESUME_MAY_CHANGE, checked_values, to_yaml
from snnet.errors import UserError
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(TrainCommand.parse)

import contextlib
import dataclasses
import math
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnet.config.options import OPTIONS, Config, flatten
from snnet.data import DecodedImages, ReIDDataset, TrainingLoader, dataset_of, training_loader
from snnet.files.drafts import draft_file
from snnet.files.outputs import delete, naming_folder, write_text
from snnet.files.paths import expand_home
from snnet.files.run_files import CHECKPOINT_FILE, CONFIG_FILE, METRICS_FILE
from snnet.files.text import shown
from snnet.retrieval.features import (
    RetrievalSet,
    check_same_images,
    decode,
    decode_retrieval_set,
    extract_features,
    known_identities,
    own_share,
    rank_gallery,
    rerank_gallery,
    retrieval_features,
    shot_seed,
)
from snnet.retrieval.rank_tables import rank_record, rank_table
from snnet.runtime import (
    PlacedModel,
    Placement,
    check_same_options,
    environment,
    kernels_line,
    network_of,
    prepare,
    show_warnings_as_lines,
)
from snnet.system.processes import ALONE, Processes, several_processes
from snnet.system.progress import progress, say, set_quiet
from snnet.system.terminal import tell
from snnet.training.checkpoint import check_measurements, load_checkpoint
from snnet.training.divergence import LossWatch, check_weights
from snnet.training.division import check_division, with_groups
from snnet.training.label_quality import label_quality, label_symmetry
from snnet.training.learner import Learner, build_learner
from snnet.training.pieces import clear_pieces
from snnet.training.run_folder import check_new, check_untrained, has_checkpoint, new_run_folder, run_folder
from snnet.training.runlog import RANKS, RunLog, epoch_line, run_results, time_line
from snnet.training.timing import Laps


def main(command: TrainCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    with several_processes() as processes:
        if command.preset:
            say(f"preset {command.preset}; flags win over it")
        train(command.config, resume=command.resume, processes=processes, timeout=command.timeout)


def train(
    config: Config,
    resume: Path | None = None,
    *,
    processes: Processes = ALONE,
    timeout: float = TrainCommand.timeout,
) -> dict[str, Any]:
    """Train with ``config``, from the beginning or from the checkpoint in the folder ``resume``.

    With several ``processes`` each calls it. If one does not answer for ``timeout`` seconds, the others end. Rank 0
    returns the content of ``results.json``. Raises :class:`~snnet.errors.UserError` for data, weights or a checkpoint
    that cannot be used, if another run writes to the folder, and if the loss is no longer finite.
    """
    with _own_folder(config, resume, processes) as folder:
        return _train(config, folder, resumed=resume is not None, processes=processes, timeout=timeout)


def _train(
    config: Config, folder: Path, *, resumed: bool, processes: Processes, timeout: float
) -> dict[str, Any]:
    check_division(config, processes, resumed=resumed)
    with processes.one_warns():
        warn_of_no_labels(config)
    checkpoint = _checkpoint_to_resume(config, folder) if resumed else None
    placement = prepare(config.runtime)
    config = with_choices_made(config, placement)
    check_same_options(config, placement.device, processes, {"--resume": "given" if resumed else "not given"})
    group = processes.group(placement.device, timeout)
    if checkpoint is None:
        config = with_groups(config, processes)
    dataset = processes.first_ahead(lambda: dataset_of(config.data, camstyle=config.data.camstyle))
    check_same_images(dataset, processes)
    known_identities(dataset)  # raises where no ranking is possible
    # A resumed run has its weights in the checkpoint: the file that they began with is not needed again.
    weights = config.model.weights if checkpoint is None else None
    with processes.one_warns():
        model = processes.first_ahead(lambda: network_of(config, weights))
    data = load_data(dataset, config, placement, processes)
    learner = build_learner(PlacedModel(model, config, placement), data.images.images, processes, group)

    def save() -> None:
        learner.save(folder / CHECKPOINT_FILE, config=flatten(config), before=before, metrics=records)

    unsaved = False  # whether something was measured after the last checkpoint
    if checkpoint is not None:
        learner.load(checkpoint, folder / CHECKPOINT_FILE)
        before, records = checkpoint["before"], checkpoint["metrics"]
        del checkpoint
        unsaved = bool(records) and measure(learner, data, records[-1])
    else:
        if processes.is_first:
            clear_pieces(folder, [])
        before, records = ranks(learner, data), []
        if before:
            say(f"before training: rank-1 {100 * before['rank1']:.1f} mAP {100 * before['mAP']:.1f}")
        fill_memory(learner, data)

    epochs = config.training.epochs
    log: RunLog | None = None  # rank 0 alone writes
    if processes.is_first:
        if not records:  # those of a run without a checkpoint: by the new interval it might have had one
            delete(folder / METRICS_FILE)
        write_text(folder / CONFIG_FILE, to_yaml(config))
        log = RunLog(folder, records)
        if len(records) < epochs:
            log.write_start(environment(placement, processes.count))
    say(kernels_line(placement.device))
    shared = f", {processes.count} processes" if processes.are_several else ""
    say(f"{folder}: {len(records)} of {epochs} epochs done, on {placement.summary()}{shared}")
    for epoch in range(len(records), epochs):
        processes.meet()
        started = time.perf_counter()
        trained = train_epoch(learner, data.loader, epoch)
        records.append({"epoch": epoch, **trained, "seconds": time.perf_counter() - started})
        if epoch + 1 == epochs or (epoch + 1) % config.output.checkpoint_every == 0:
            save()
        unsaved = measure(learner, data, records[-1])
        if log is not None:
            log.write_epoch()
        say(epoch_line(records[-1]))
    if unsaved:
        save()

    if log is None:
        return {}
    results = run_results(config, before, records)
    log.write_results(results)
    if before:
        rows = {"before": results["before"], "after": results["after"]}
        rows |= {"re-ranked": results["reranked"]} if "reranked" in results else {}
        tell(*rank_table(rows).split("\n"), *if_worse(results["before"]["mAP"], results["after"]["mAP"]))
    say(time_line(results["seconds_by_part"]))
    tell(f"run folder: {folder}")
    return results


def if_worse(before: float, after: float) -> list[str]:
    """A line that says so where training lowered mAP; losses and labels do not show it."""
    if after >= before:
        return []
    return [
        f"training made the network worse: mAP {100 * before:.2f} before, {100 * after:.2f} after; "
        "usual reasons are too few images and a high --lr"
    ]


@dataclass(frozen=True, eq=False)
class Data:
    """The decoded images of a run."""

    images: DecodedImages
    loader: TrainingLoader
    retrieval: RetrievalSet | None  # None: nothing to evaluate on


def load_data(dataset: ReIDDataset, config: Config, placement: Placement, processes: Processes) -> Data:
    """Decode all images before anything is written or trained. Each process decodes its share of query and gallery."""
    data = config.data
    with processes.one_warns():
        images = decode(dataset.train, config)
    loader = training_loader(
        images,
        height=data.height,
        width=data.width,
        batch_size=data.batch_size,
        workers=data.workers,
        seed=config.runtime.seed,
        camstyle=data.camstyle,
        pin_memory=placement.pin_memory,
        part=processes.rank,
        parts=processes.count,
    )
    return Data(images, loader, decode_retrieval_set(dataset, config, processes))


def warn_of_no_labels(config: Config) -> None:
    """Warn if the run ends before labels are predicted."""
    start, epochs = config.method.label_start_epoch, config.training.epochs
    if start >= epochs:
        line = f"no label is ever predicted: --label-start-epoch {start} is not below --epochs {epochs}"
        warnings.warn(line, stacklevel=3)


def with_choices_made(config: Config, placement: Placement) -> Config:
    """The configuration with this machine's own choices written out, so that a resumed run does the same arithmetic."""
    runtime = dataclasses.replace(config.runtime, channels_last=placement.channels_last)
    return dataclasses.replace(config, runtime=runtime)


def set_schedule(learner: Learner, epoch: int) -> dict[str, float]:
    """Set learning rates, α of the memory and the warm-up for an epoch: functions of the epoch alone."""
    training = learner.config.training
    factor = 0.1 if training.lr_step_epoch and epoch >= training.lr_step_epoch else 1.0
    for group in learner.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    momentum = 0.5 * epoch / training.epochs
    learner.head.momentum = momentum
    learner.head.warmup = epoch < learner.config.method.label_start_epoch
    return {"lr": training.lr * factor, "memory_momentum": momentum}


def train_epoch(learner: Learner, loader: TrainingLoader, epoch: int) -> dict[str, float]:
    """One pass over the training images; returns its mean loss and label statistics, and where the time went.

    Raises :class:`~snnet.errors.UserError` naming epoch and step where the loss stops being finite.
    """
    model, head, optimizer, placement = learner.model, learner.head, learner.optimizer, learner.placement
    rates = set_schedule(learner, epoch)
    model.train()
    head.train()
    seed_masks(learner, epoch)
    laps = Laps(placement.device)
    if not head.warmup:
        head.memory.current_lists()
        head.memory.renew_lists_()
        laps.end("labels")
    loader.set_epoch(epoch)
    totals: dict[str, Tensor] = {}
    watch = LossWatch(epoch, len(loader), placement.device, learner.processes)
    for step, (images, index) in enumerate(progress(loader, f"epoch {epoch}")):
        images, index = placement.images(images), index.to(placement.device, non_blocking=True)
        laps.end("data")
        with placement.autocast():
            features = learner.network(images)
        laps.end("forward")
        loss = head(features, index)
        watch.check(loss.detach(), step)
        laps.end("labels")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        laps.end("backward")
        head.update_(index, features.detach())
        for name, value in {"loss": loss.detach(), **head.label_statistics()}.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value
        laps.end("update")
    learner.share_statistics()
    check_weights(model, epoch)
    means = {name: float(total) / len(loader) for name, total in totals.items()}
    losses = learner.processes.everywhere(means["loss"])
    means["loss"] = sum(losses) / len(losses)
    # In the warm-up there are no agreements.
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    return means | rates | {f"seconds_{name}": value for name, value in laps.seconds().items()}


def seed_masks(learner: Learner, epoch: int) -> None:
    """Let each of several processes draw random masks of its own (dropout, drop path); one goes on from its state."""
    processes, seed = learner.processes, learner.config.runtime.seed
    if processes.are_several:
        own = np.random.SeedSequence([seed, epoch, processes.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(own[0]))


def fill_memory(learner: Learner, data: Data) -> None:
    """Fill M with the features of all training images, of which each process extracts its share."""
    share = own_share(len(data.images), learner.config, learner.processes)
    images = data.images.select(share) if learner.processes.are_several else data.images
    found = extract_features(learner, images, "train", learner.processes)
    learner.fill_memory(found, share)


def ranks(learner: Learner, data: Data, *, rerank: bool = False) -> dict[str, Any]:
    """CMC and mAP of the network as it is, empty where there is nothing to evaluate on.

    ``rerank`` adds those after re-ranking, whose names begin with ``reranked_``. All processes extract; rank 0 ranks,
    and the others get nothing.
    """
    if data.retrieval is None:
        return {}
    features = retrieval_features(learner, data.retrieval, learner.processes)
    if not learner.processes.is_first:
        return {}
    how = learner.config.output.average_precision, shot_seed(learner.config)
    found = rank_record(rank_gallery(*features, data.retrieval, *how))
    if rerank:
        again = rank_record(rerank_gallery(*features, data.retrieval, *how))
        found |= {f"reranked_{name}": again[name] for name in RANKS}
    return found


def measure(learner: Learner, data: Data, record: dict[str, Any]) -> bool:
    """Add to the last epoch's ``record`` what it lacks: quality of the labels, and the ranks where they are due.

    A checkpoint is written before it, so that a failure here costs no epoch: a resumed run measures it. Returns
    whether anything was lacking, which all processes answer alike.
    """
    config, epoch = learner.config, record["epoch"]
    output, last = config.output, epoch + 1 == config.training.epochs
    due = last or (output.eval_every and (epoch + 1) % output.eval_every == 0)
    rerank = last and output.rerank
    wanted = {"mAP", "reranked_mAP"} if rerank else {"mAP"}
    lacks_ranks = bool(data.retrieval is not None and due and wanted - record.keys())
    lacks_labels = "seconds_measure" not in record
    if not lacks_labels and not lacks_ranks:
        return False
    learner.processes.meet()
    started = time.perf_counter()
    if lacks_labels and epoch >= config.method.label_start_epoch:
        record |= _measured_labels(learner, data.images.images.pids)
    if lacks_ranks:
        found = ranks(learner, data, rerank=rerank)
        record |= {name: value for name, value in found.items() if name.removeprefix("reranked_") in RANKS}
    seconds = time.perf_counter() - started
    record["seconds_measure"] = record.get("seconds_measure", 0.0) + seconds
    record["seconds"] += seconds
    return True


def _measured_labels(learner: Learner, pids: np.ndarray | None) -> dict[str, float]:
    """Symmetry and quality of the label memory, measured by rank 0."""
    labels = learner.labels()
    if labels is None:
        return {}
    return label_symmetry(labels) | ({} if pids is None else label_quality(labels, pids))


@contextlib.contextmanager
def _own_folder(config: Config, resume: Path | None, processes: Processes) -> Iterator[Path]:
    """The locked folder of this run, the same for all processes."""
    if not processes.are_several:
        with _folder(config, resume) as folder:
            yield folder
        return
    with _folder(config, resume) if processes.is_first else contextlib.nullcontext(Path()) as own:
        # Machines may have folders of the same path that are not shared: only a new file tells them apart.
        mark = draft_file(own.absolute()) if processes.is_first else contextlib.nullcontext((Path(), None))
        with mark as (marked, file):
            if file is not None:
                with naming_folder(own, "the folder of the run"), file:  # closed: others may see it only then
                    file.write(marked.name.encode())
            marked = processes.everywhere(marked)[0]
            there = processes.everywhere(_is_mark(marked))  # before rank 0 may fail and delete the folder
        if not there[processes.rank]:
            raise UserError(
                f"{marked.parent} is not the folder that rank 0 writes to: it must be shared by all machines"
            )
        yield marked.parent


def _is_mark(path: Path) -> bool:
    """Whether ``path`` is the file of rank 0, which holds its own name."""
    try:
        return path.read_bytes() == path.name.encode()
    except OSError:
        return False


def _folder(config: Config, resume: Path | None) -> AbstractContextManager[Path]:
    if resume is not None:
        return run_folder(resume, "--resume")
    if config.output.output_dir is not None:
        folder = Path(expand_home(config.output.output_dir))
        check_new(folder)
        return run_folder(folder, "--output-dir")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    arch = config.model.arch.replace(":", "-")
    return new_run_folder(f"runs/{config.data.dataset}-{arch}-{stamp}")


def _checkpoint_to_resume(config: Config, folder: Path) -> dict[str, Any] | None:
    """The checkpoint of the run in ``folder``; None if the run was stopped before its first one."""
    if not has_checkpoint(folder, "--resume"):
        anew = shlex.join(["--config", str(folder / CONFIG_FILE), "--output-dir", "NEW"])
        check_untrained(folder, f"train anew with {anew}")
        say(f"{folder} has no checkpoint yet: starting at epoch 0")
        return None
    checkpoint = load_checkpoint(folder)
    check_measurements(checkpoint, folder / CHECKPOINT_FILE)
    written = checked_values(checkpoint["config"], str(folder / CHECKPOINT_FILE))
    for name, value in flatten(config).items():
        was = written.get(name, OPTIONS[name].default)
        if name not in RESUME_MAY_CHANGE and value != was:
            raise UserError(
                f"{folder / CONFIG_FILE} has {name} {value}, but the checkpoint was written with {shown(was)}"
            )
    return checkpoint


if __name__ == "__main__":
    run_command(lambda: main(command))
