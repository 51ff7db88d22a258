"""Everything that training changes: network, memories and optimiser, over one process or several."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snnet.data import ImageSet
from snnet.errors import UserError
from snnet.runtime import PlacedModel
from snnet.system.processes import ALONE, Processes
from snnet.system.row_exchange import moved_rows
from snnet.training.checkpoint import (
    LISTS,
    has_same_images,
    image_fingerprint,
    load_optimizer,
    load_state,
    picture_fingerprint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from snnet.training.division import divide_batch_norm
from snnet.training.pieces import clear_pieces, memory_state, write_pieces
from snnet_kernels import PseudoLabelMemory, SNNetHead


@dataclass(frozen=True, eq=False)
class Learner(PlacedModel):
    """The network with its memories and optimiser: what a checkpoint holds.

    Each of several processes has the whole network and optimiser, and its rows of M and columns of P.
    """

    head: SNNetHead
    optimizer: torch.optim.Optimizer
    fingerprint: int  # of the training images, whose order the rows of M and P follow
    style_fingerprint: int | None = None  # of the CamStyle files; None where CamStyle is off
    picture_fingerprint: int | None = None  # of what the training images show; None for the built-in set

    processes: Processes = ALONE
    group: dist.ProcessGroup | None = None  # of several processes
    parallel: DistributedDataParallel | None = None  # the network, whose gradients are those of all processes

    @property
    def network(self) -> nn.Module:
        """The network as a training step calls it."""
        return self.model if self.parallel is None else self.parallel

    @property
    def rows(self) -> range | None:
        """The rows of the memories that this process has; None: all."""
        return self.head.memory.own_rows if self.processes.are_several else None

    def fill_memory(self, features: Tensor, images: range) -> None:
        """Fill M with the ``features`` of these ``images``; other processes give those of the other images."""
        if self.rows is not None:
            features = moved_rows(features, images, self.rows, self.processes)
        self.head.initialize_(features.to(self.head.memory.features.device))

    def labels(self) -> PseudoLabelMemory | None:
        """The labels of all images; with several processes a copy for rank 0, and None for the others."""
        labels: Any = self.head.pseudo_labels
        return labels.gather(to=0) if self.processes.are_several else labels

    def share_statistics(self) -> None:
        """Let all processes have the running statistics of rank 0, as DistributedDataParallel does before each step."""
        found = [value for value in self.model.buffers() if value.is_floating_point()]
        if self.group is None or not found:
            return
        together = torch.cat([value.detach().flatten() for value in found])
        dist.broadcast(together, dist.get_global_rank(self.group, 0), self.group)
        with torch.no_grad():
            for value, part in zip(found, together.split([value.numel() for value in found]), strict=True):
                value.copy_(part.view_as(value))

    def save(self, path: Path, *, config: dict[str, Any], before: dict[str, Any], metrics: list[Any]) -> None:
        """Write a checkpoint, with the random state of this moment; the weights in torch's usual layout.

        Several processes write a piece each, and rank 0 the checkpoint when all are there.
        """
        head, pieces = self.head.state_dict(), None
        if self.rows is not None:
            pieces = write_pieces(path.parent, len(metrics), self.rows, head, self.processes)
            head = {}
            if pieces is None:
                return
        save_checkpoint(
            path,
            pieces=pieces,
            styles=self.style_fingerprint,
            pictures=self.picture_fingerprint,
            model={name: value.contiguous() for name, value in self.model.state_dict().items()},
            optimizer=self.optimizer.state_dict(),
            head=head,
            rng=rng_state(every_gpu=not self.processes.are_several),
            config=config,
            before=before,
            metrics=metrics,
            images=self.fingerprint,
            torch=str(torch.__version__),
        )
        clear_pieces(path.parent, pieces or [])

    def load(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue from what :meth:`save` of any number of processes wrote to ``path``, random state included.

        What a :meth:`save` that failed has left beside it is deleted.
        """
        if not has_same_images(checkpoint, self.fingerprint, self.picture_fingerprint):
            raise UserError(f"{path} was written for other training images than those that were found")
        if checkpoint.get("styles", self.style_fingerprint) != self.style_fingerprint:
            raise UserError(f"{path} was written for other CamStyle images than those that were found")
        load_state(self.model, checkpoint["model"], path, "network")
        head = memory_state(checkpoint, path, self.rows)
        load_state(self.head, head, path, "exemplar and label memory", optional=LISTS)
        load_optimizer(self.optimizer, checkpoint["optimizer"], path)
        try:
            set_rng_state(checkpoint["rng"], every_gpu=not self.processes.are_several)
        except Exception as error:  # the generators check what they are given in ways of their own
            raise UserError(f"{path} is not a whole checkpoint: its random state is damaged") from error
        if self.processes.is_first:
            clear_pieces(path.parent, checkpoint.get("pieces") or [])


def build_learner(
    placed: PlacedModel,
    images: ImageSet,
    processes: Processes = ALONE,
    group: dist.ProcessGroup | None = None,
) -> Learner:
    """Put a network in its place and give it memories of these images and an optimiser.

    All of several ``processes``, which are the ``group``, call it. Raises :class:`~snnet.errors.UserError` where they
    have found different images, and where the memories have no room.
    """
    config, placement = placed.config, placed.placement
    method, training = config.method, config.training
    styles = None if images.styles is None else [file for files in images.styles for file in files]
    own = (
        image_fingerprint(images.paths),
        None if styles is None else image_fingerprint(styles),
        picture_fingerprint(config.data.dataset, images.paths),
    )
    what = ("names of the training", "names of the CamStyle", "content of the training")
    processes.check_alike(
        {f"the checksum of the {part} images": found for part, found in zip(what, own, strict=True)}
    )
    model = divide_batch_norm(placed.model, config, processes, placement.device, group)
    placement.place(model)
    try:
        head = SNNetHead(
            num_instances=len(images),
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
            process_group=group,
        )
    except MemoryError as error:
        raise UserError(f"{len(images)} training images: {error}") from error
    optimizer = torch.optim.SGD(
        model.parameter_groups(training.lr, training.backbone_lr_mult),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    for parameters in optimizer.param_groups:
        parameters["initial_lr"] = parameters["lr"]
    parallel = None
    if group is not None:
        # It tells of a copy of 1 x 1 or depthwise filters in channels-last layout.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [torch.cuda.current_device()] if placement.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, devices, process_group=group)
    return Learner(model, config, placement, head, optimizer, *own, processes, group, parallel)
