"""``python -m snnet.train``: train SNNet without labels. ``--help`` explains every flag."""

from __future__ import annotations

import sys

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import TrainCommand
from snnet.config.resolve import CHECKPOINT_FILE, CONFIG_FILE, RESUME_MAY_CHANGE, checked_values, to_yaml
from snnet.errors import UserError
from snnet.system.command import answer_early, run_command

if __name__ == "__main__":
    answer_early(TrainCommand.parse)

import dataclasses
import math
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnet.config.options import OPTIONS, Config, flatten
from snnet.data import DecodedImages, ReIDDataset, TrainingLoader, build_dataset, training_loader
from snnet.files.outputs import write_text
from snnet.files.paths import expand_home
from snnet.files.text import shown
from snnet.models import ReIDModel, build_model
from snnet.models.grouped_norm import group_batch_norms
from snnet.retrieval.features import (
    RetrievalSet,
    decode,
    decode_retrieval_set,
    extract_features,
    rank_gallery,
    rerank_gallery,
    retrieval_features,
    shot_seed,
)
from snnet.retrieval.rank_tables import rank_record, rank_table
from snnet.runtime import Placement, environment, kernels_line, prepare, show_warnings_as_lines
from snnet.system.progress import progress, say, set_quiet
from snnet.system.terminal import tell
from snnet.training.checkpoint import (
    LISTS,
    check_measurements,
    image_fingerprint,
    load_checkpoint,
    load_optimizer,
    load_state,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from snnet.training.divergence import LossWatch, check_weights
from snnet.training.label_quality import label_quality, label_symmetry
from snnet.training.run_folder import new_run_folder, run_folder
from snnet.training.runlog import RANKS, RunLog, epoch_line, run_results, time_line
from snnet.training.timing import Laps
from snnet_kernels import SNNetHead


def main() -> None:
    show_warnings_as_lines()
    command = TrainCommand.parse(sys.argv[1:])
    set_quiet(command.quiet)
    if command.preset:
        say(f"preset {command.preset}; flags win over it")
    train(command.config, resume=command.resume)


def train(config: Config, resume: Path | None = None) -> dict[str, Any]:
    """Train as ``config`` says, from the beginning or from the checkpoint in the folder ``resume``.

    Returns what is written to ``results.json``. Raises :class:`~snnet.errors.UserError` for data, weights or
    a checkpoint that cannot be used, where another run writes to the folder, and where the loss stops being finite.
    """
    with _own_folder(config, resume) as folder:
        if resume is None and (folder / CHECKPOINT_FILE).exists():
            raise UserError(
                f"{folder} has the checkpoint of a run: continue it with --resume {folder}, or choose another "
                "--output-dir"
            )
        return _train(config, folder, resumed=resume is not None)


def _train(config: Config, folder: Path, resumed: bool) -> dict[str, Any]:
    check_batch(config)
    warn_of_no_labels(config)
    checkpoint = _checkpoint_to_resume(config, folder) if resumed else None
    placement = prepare(config.runtime)
    dataset = find_dataset(config)
    # A resumed run has its weights in the checkpoint: the file that they began with is not needed again.
    weights = config.model.weights if checkpoint is None else None
    model = build_model(
        config.model.arch,
        embedding=config.model.embedding,
        weights=weights,
        height=config.data.height,
        width=config.data.width,
    )
    group_batch_norms(model, config.training.bn_groups)
    data = load_data(dataset, config, placement)
    learner = build_learner(config, model, data, placement)
    config = with_choices_made(config, placement)

    if checkpoint is not None:
        learner.load(checkpoint, folder / CHECKPOINT_FILE)
        before, records = checkpoint["before"], checkpoint["metrics"]
    else:
        before, records = ranks(learner, data, config, placement), []
        if before:
            say(f"before training: rank-1 {100 * before['rank1']:.1f} mAP {100 * before['mAP']:.1f}")
        learner.head.initialize_(extract_features(learner.model, data.images, config, placement, "train"))

    write_text(folder / CONFIG_FILE, to_yaml(config))
    log = RunLog(folder, records)
    log.write_start(environment(placement))
    epochs = config.training.epochs
    say(kernels_line(placement.device))
    say(f"{folder}: {len(records)} of {epochs} epochs done, on {placement.summary()}")
    for epoch in range(len(records), epochs):
        started = time.perf_counter()
        measured = train_epoch(learner, data.loader, config, placement, epoch)
        measured |= measure_epoch(learner, data, config, placement, epoch)
        records.append({"epoch": epoch, **measured, "seconds": time.perf_counter() - started})
        if epoch + 1 == epochs or (epoch + 1) % config.output.checkpoint_every == 0:
            learner.save(folder / CHECKPOINT_FILE, config=flatten(config), before=before, metrics=records)
        log.write_epoch()
        say(epoch_line(records[-1]))

    results = run_results(config, before, records)
    log.write_results(results)
    if before:
        rows = {"before": results["before"], "after": results["after"]}
        rows |= {"re-ranked": results["reranked"]} if "reranked" in results else {}
        tell(*rank_table(rows).split("\n"))
    say(time_line(results["seconds_by_part"]))
    tell(f"run folder: {folder}")
    return results


@dataclass(frozen=True, eq=False)
class Data:
    """The decoded images of a run."""

    images: DecodedImages
    loader: TrainingLoader
    retrieval: RetrievalSet | None  # None: nothing to evaluate on


def find_dataset(config: Config) -> ReIDDataset:
    """The files of the dataset, by their names."""
    data = config.data
    dataset = build_dataset(
        data.dataset, data.data_dir, name_pattern=data.name_pattern, camstyle=data.camstyle
    )
    say(*dataset.summary().split("\n"))
    return dataset


def load_data(dataset: ReIDDataset, config: Config, placement: Placement) -> Data:
    """Decode all images before anything is written or trained."""
    data = config.data
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
    )
    return Data(images, loader, decode_retrieval_set(dataset, config))


@dataclass(frozen=True, eq=False)
class Learner:
    """Everything that training changes, which is what a checkpoint holds."""

    model: ReIDModel
    head: SNNetHead
    optimizer: torch.optim.Optimizer
    fingerprint: int  # of the training images, whose order the rows of M and P follow

    def save(self, path: Path, *, config: dict[str, Any], before: dict[str, Any], metrics: list[Any]) -> None:
        """Write a checkpoint, with the random state of this moment; the weights in torch's usual layout."""
        save_checkpoint(
            path,
            model={name: value.contiguous() for name, value in self.model.state_dict().items()},
            optimizer=self.optimizer.state_dict(),
            head=self.head.state_dict(),
            rng=rng_state(),
            config=config,
            before=before,
            metrics=metrics,
            images=self.fingerprint,
            torch=str(torch.__version__),
        )

    def load(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue from what :meth:`save` wrote to ``path``, random state included."""
        if checkpoint["images"] != self.fingerprint:
            raise UserError(f"{path} was written for other training images than those that were found")
        load_state(self.model, checkpoint["model"], path, "network")
        load_state(self.head, checkpoint["head"], path, "exemplar and label memory", optional=LISTS)
        load_optimizer(self.optimizer, checkpoint["optimizer"], path)
        try:
            set_rng_state(checkpoint["rng"])
        except Exception as error:  # the generators check what they are given in ways of their own
            raise UserError(f"{path} is not a whole checkpoint: its random state is damaged") from error


def build_learner(config: Config, model: ReIDModel, data: Data, placement: Placement) -> Learner:
    """Put the network in its place and give it memories and an optimiser."""
    method, training = config.method, config.training
    placement.model(model)
    try:
        head = SNNetHead(
            num_instances=len(data.images),
            feature_dim=model.feature_dim,
            threshold=method.threshold,
            min_rank=method.min_rank,
            weights=(method.lambda_base, method.lambda_sym, method.lambda_nh),
            loss_kind=method.loss_kind,
            delta=method.delta,
            hard_negative_ratio=method.hard_negative_ratio,
            label_source=method.label_source,
            neighbors=method.neighbors,
            device=placement.device,
        )
    except MemoryError as error:
        raise UserError(f"{len(data.images)} training images: {error}") from error
    optimizer = torch.optim.SGD(
        model.parameter_groups(training.lr, training.backbone_lr_mult),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return Learner(model, head, optimizer, image_fingerprint(data.images.images.paths))


def check_batch(config: Config) -> None:
    """Raise :class:`~snnet.errors.UserError` unless batch normalisation can cut a batch into its groups."""
    batch, groups = config.data.batch_size, config.training.bn_groups
    if batch % groups != 0 or batch < 2 * groups:
        raise UserError(f"--bn-groups {groups} must cut --batch-size {batch} into equal parts of 2 or more")


def warn_of_no_labels(config: Config) -> None:
    """Warn of a run that is over before labels are predicted."""
    start, epochs = config.method.label_start_epoch, config.training.epochs
    if start >= epochs:
        line = f"no label is ever predicted: --label-start-epoch {start} is not below --epochs {epochs}"
        warnings.warn(line, stacklevel=3)


def with_choices_made(config: Config, placement: Placement) -> Config:
    """What was left to this machine as what it came to, so that a resumed run does the same arithmetic."""
    runtime = dataclasses.replace(config.runtime, channels_last=placement.channels_last)
    return dataclasses.replace(config, runtime=runtime)


def set_schedule(learner: Learner, config: Config, epoch: int) -> dict[str, float]:
    """Set learning rates, α of the memory and the warm-up for an epoch: functions of the epoch alone."""
    training = config.training
    factor = 0.1 if training.lr_step_epoch and epoch >= training.lr_step_epoch else 1.0
    for group in learner.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    momentum = 0.5 * epoch / training.epochs
    learner.head.momentum = momentum
    learner.head.warmup = epoch < config.method.label_start_epoch
    return {"lr": training.lr * factor, "memory_momentum": momentum}


def train_epoch(
    learner: Learner, loader: TrainingLoader, config: Config, placement: Placement, epoch: int
) -> dict[str, float]:
    """One pass over the training images; returns its mean loss and label statistics, and where the time went.

    Raises :class:`~snnet.errors.UserError` naming epoch and step where the loss stops being finite.
    """
    model, head, optimizer = learner.model, learner.head, learner.optimizer
    rates = set_schedule(learner, config, epoch)
    model.train()
    head.train()
    laps = Laps(placement.device)
    if not head.warmup:
        head.memory.current_lists()
        head.memory.renew_lists_()
        laps.end("labels")
    loader.set_epoch(epoch)
    totals: dict[str, Tensor] = {}
    watch = LossWatch(epoch, len(loader), placement.device)
    for step, (images, index) in enumerate(progress(loader, f"epoch {epoch}")):
        images, index = placement.images(images), index.to(placement.device, non_blocking=True)
        laps.end("data")
        with placement.autocast():
            features = model(images)
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
    check_weights(model, epoch)
    means = {name: float(total) / len(loader) for name, total in totals.items()}
    # In the warm-up there are no agreements.
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    return means | rates | {f"seconds_{name}": value for name, value in laps.seconds().items()}


def ranks(
    learner: Learner, data: Data, config: Config, placement: Placement, *, rerank: bool = False
) -> dict[str, Any]:
    """CMC and mAP of the network as it is, empty where there is nothing to evaluate on.

    With ``rerank`` those after re-ranking too, each name behind ``reranked_``.
    """
    if data.retrieval is None:
        return {}
    features = retrieval_features(learner.model, data.retrieval, config, placement)
    how = config.output.average_precision, shot_seed(config)
    found = rank_record(rank_gallery(*features, data.retrieval, *how))
    if rerank:
        again = rank_record(rerank_gallery(*features, data.retrieval, *how))
        found |= {f"reranked_{name}": again[name] for name in RANKS}
    return found


def measure_epoch(
    learner: Learner, data: Data, config: Config, placement: Placement, epoch: int
) -> dict[str, float]:
    """What is looked at after an epoch: the label memory, and the ranks where they are due."""
    started = time.perf_counter()
    measured: dict[str, float] = {}
    if not learner.head.warmup:
        measured |= label_symmetry(learner.head.pseudo_labels)
        if data.images.images.pids is not None:
            measured |= label_quality(learner.head.pseudo_labels, data.images.images.pids)
    last = epoch + 1 == config.training.epochs
    if last or (config.output.eval_every and (epoch + 1) % config.output.eval_every == 0):
        found = ranks(learner, data, config, placement, rerank=last and config.output.rerank)
        measured |= {name: value for name, value in found.items() if name.removeprefix("reranked_") in RANKS}
    return measured | {"seconds_measure": time.perf_counter() - started}


def _own_folder(config: Config, resume: Path | None) -> AbstractContextManager[Path]:
    """The folder that this run has for itself."""
    if resume is not None:
        return run_folder(resume, "--resume")
    if config.output.output_dir is not None:
        return run_folder(Path(expand_home(config.output.output_dir)), "--output-dir")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    arch = config.model.arch.replace(":", "-")
    return new_run_folder(f"runs/{config.data.dataset}-{arch}-{stamp}")


def _checkpoint_to_resume(config: Config, folder: Path) -> dict[str, Any] | None:
    """The checkpoint of the run in ``folder``; None where the run was stopped before its first one."""
    if not (folder / CHECKPOINT_FILE).exists():
        say(f"{folder} has no checkpoint yet: starting at epoch 0")
        return None
    checkpoint = load_checkpoint(folder)
    check_measurements(checkpoint, RANKS, folder / CHECKPOINT_FILE)
    written = checked_values(checkpoint["config"], str(folder / CHECKPOINT_FILE))
    for name, value in flatten(config).items():
        was = written.get(name, OPTIONS[name].default)
        if name not in (*RESUME_MAY_CHANGE, "output_dir") and value != was:
            raise UserError(
                f"{folder / CONFIG_FILE} has {name} {value}, but the checkpoint was written with {shown(was)}"
            )
    return checkpoint


if __name__ == "__main__":
    run_command(main)
