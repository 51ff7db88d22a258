"""How a batch is divided over processes and over groups of batch normalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnet.config.options import Config
from snnet.errors import UserError
from snnet.models.grouped_norm import group_batch_norms
from snnet.system.processes import Processes
from snnet.system.progress import say

Network = TypeVar("Network", bound=nn.Module)


def check_division(config: Config, processes: Processes, *, resumed: bool) -> None:
    """Raise :class:`~snnet.errors.UserError` unless a batch can be cut into the parts that are asked for.

    A ``resumed`` run may have begun with a number of groups that these processes do not have.
    """
    training, count = config.training, processes.count
    batch, groups = config.data.batch_size, training.bn_groups
    if batch % groups != 0 or batch < 2 * groups:
        raise UserError(f"--bn-groups {groups} must cut --batch-size {batch} into equal parts of 2 or more")
    if training.sync_bn and groups > 1:
        raise UserError(f"--sync-bn contradicts --bn-groups {groups}: one joins what the other parts")
    if count == 1:
        return
    if batch % count != 0 or batch < 2 * count:
        raise UserError(
            f"--batch-size {batch} is shared by {count} processes: it must be a multiple of {count}, 2 images each or "
            "more"
        )
    if groups > 1 and groups % count != 0 and not resumed:
        raise UserError(
            f"--bn-groups {groups} is of the whole batch, for {count} processes: it must be a multiple of {count}"
        )
    if config.method.neighbors == 0:
        raise UserError("--neighbors 0 is for one process: several find labels by neighbour lists")


def with_groups(config: Config, processes: Processes) -> Config:
    """The configuration of a run that begins: batch normalisation has at least a group for each process."""
    training = config.training
    if training.sync_bn or training.bn_groups > 1:
        return config
    return dataclasses.replace(config, training=dataclasses.replace(training, bn_groups=processes.count))


def divide_batch_norm(
    model: Network,
    config: Config,
    processes: Processes,
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> Network:
    """Let the batch normalisation of ``model`` take the parts of a batch that ``config`` says; returns the network."""
    if config.training.sync_bn and processes.are_several:
        if device.type != "cuda":
            raise UserError("--sync-bn needs GPUs, one a process: torch has it for these alone")
        return _with_sync(model, group)
    groups, count = config.training.bn_groups, processes.count
    if groups % count == 0:
        group_batch_norms(model, groups // count)
    else:
        say(f"batch normalisation treats {count} parts of a batch separately; the run began with {groups}")
    return model


def _with_sync(model: Network, group: dist.ProcessGroup | None) -> Network:
    kinds = {type(layer) for layer in model.modules() if isinstance(layer, _BatchNorm)}
    convert: Callable[..., Any] = nn.SyncBatchNorm.convert_sync_batchnorm
    if kinds - {
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
    }:  # timm's, with an activation that torch's would lose
        from timm.layers import convert_sync_batchnorm as convert
    found: Network = convert(model, group)
    return found
