"""Backbones of timm (the extra ``timm``)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from snnet.config.timm_names import TimmInput, import_timm, parse_timm, timm_input
from snnet.errors import UserError
from snnet.files.text import first_line


def build_timm(arch: str, height: int | None, width: int | None) -> tuple[Any, TimmInput]:
    """The network ``arch`` (``timm:NAME``) without its classifier, for images of that size, from random weights.

    It takes images [B, 3, height, width] normalised as its configuration says, which is returned too, to
    features [B, pooled_dim]. Without a height or width it is built for those of its configuration. Raises
    :class:`~snnet.errors.UserError` where timm cannot build it, or it cannot take such images.
    """
    own = timm_input(arch)
    height, width = height or own.height, width or own.width
    network = _create(arch, own, height, width)
    network.pooled_dim = int(network.head_hidden_size)
    _try_image(arch, network, height, width)
    return network, own


def pretrained_state(arch: str, height: int, width: int) -> dict[str, Tensor]:
    """The weights that timm publishes for ``arch``, fitted by timm to that size; they may be downloaded."""
    try:
        return dict(_create(arch, timm_input(arch), height, width, pretrained=True).state_dict())
    except UserError:
        raise
    # No network, no space, a package too old, weights that nobody published: all end here.
    except Exception as error:
        raise UserError(
            f"weights: those that timm has for {arch} could not be had ({first_line(error)}); "
            "give the path of a weights file"
        ) from error


def input_map(own: TimmInput) -> tuple[Tensor, Tensor]:
    """Factor and summand [3, 1, 1] from the normalisation of this package's images, ImageNet's, to the network's."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    usual, usual_std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    return (usual_std / std)[:, None, None], ((usual - mean) / std)[:, None, None]


def _create(arch: str, own: TimmInput, height: int, width: int, pretrained: bool = False) -> Any:
    timm = import_timm(arch)
    name, arguments = parse_timm(arch)
    if own.fixed:
        arguments["img_size"] = (height, width)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # what a network says to arguments that it has no use for is its own
        if pretrained:
            raise
        raise _cannot_build(arch, height, width, first_line(error)) from error


def _try_image(arch: str, network: Any, height: int, width: int) -> None:
    """Pass one image through the network: many are built for any size, and fail at the first image."""
    try:
        # Some networks keep tensors of their first image, on its device: a copy gets it.
        with torch.no_grad():
            feature = copy.deepcopy(network).eval()(torch.zeros(1, 3, height, width))
    except Exception as error:
        raise _cannot_build(arch, height, width, first_line(error)) from error
    if feature.shape != (1, network.pooled_dim):
        reason = f"the feature of an image is {list(feature.shape)}, needed is [1, {network.pooled_dim}]"
        raise _cannot_build(arch, height, width, reason)


def _cannot_build(arch: str, height: int, width: int, reason: str) -> UserError:
    name, _ = parse_timm(arch)
    version = import_timm(arch).__version__
    return UserError(
        f"--arch {arch}: timm {version} cannot build {name} for images of {height}x{width} ({reason})"
    )
