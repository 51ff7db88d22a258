"""The model that is trained: a backbone, a BatchNorm1d neck and an L2 norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnet.config.options import Architecture, Embedding
from snnet.config.timm_names import is_timm
from snnet.errors import UserError
from snnet.models.osnet import OSNET_ARCHITECTURES, OSNet
from snnet.models.weights import load_weights

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
EMBEDDINGS: tuple[str, ...] = get_args(Embedding)


class ReIDModel(nn.Module):
    """Images to L2-normalised features: backbone, neck (BatchNorm1d), L2 norm.

    ``embedding="pool"``: the neck is a BatchNorm1d of its own on the pooled feature. ``embedding="fc"``
    (OSNet only): the network's own Linear follows the pooling, and its own BatchNorm1d is the neck; the ReLU
    that it has after them is left out. ``embedding="fc-relu"`` (OSNet only) has that ReLU too: after the neck it
    is the feature that torchreid ranks with.

    ``arch`` is one of ``ARCHITECTURES``, or ``timm:NAME`` for a network of timm (the extra ``timm``), which is built
    for images of ``height`` x ``width`` (default: those of its own configuration) and gets them normalised as it was
    trained with.

    Everything from the pooled feature on runs in float32, under autocast too; after ``.half()`` or ``.bfloat16()``
    the neck runs in that type, and pooling and L2 norm in float32.

    Attributes: ``feature_dim`` (d), ``pretrained`` (whether weights were loaded into the backbone),
    ``settings_of_weights`` (what a file of this package says of the network that its weights are of).
    """

    input_scale: Tensor  # [3, 1, 1], of networks of timm alone
    input_shift: Tensor

    def __init__(
        self, arch: str, embedding: str = "pool", height: int | None = None, width: int | None = None
    ) -> None:
        super().__init__()
        if arch not in ARCHITECTURES and not is_timm(arch):
            raise UserError(
                f"unknown arch {arch!r}: needed is one of {', '.join(ARCHITECTURES)}, or timm:NAME"
            )
        if embedding not in EMBEDDINGS:
            raise UserError(f"unknown embedding {embedding!r}: needed is one of {', '.join(EMBEDDINGS)}")
        if embedding != "pool" and arch not in OSNET_ARCHITECTURES:
            raise UserError(
                f"embedding {embedding!r} is the Linear layer that OSNet has of its own; {arch} has none: use 'pool'"
            )
        self.arch = arch
        self.embedding = embedding
        self.pretrained = False
        self.neck_pretrained = False
        self.settings_of_weights: dict[str, str] = {}
        if is_timm(arch):
            self._build_timm(arch, height, width)
        else:
            self.backbone = _build_backbone(arch, embedding)
        if embedding == "pool":
            self.neck = nn.BatchNorm1d(self.backbone.pooled_dim)
        neck = self.neck if embedding == "pool" else self.backbone.fc[1]
        self.feature_dim: int = neck.num_features

    def _build_timm(self, arch: str, height: int | None, width: int | None) -> None:
        from snnet.models.timm_backbone import build_timm, input_map

        self.backbone, own = build_timm(arch, height, width)
        self.input_size = (height or own.height, width or own.width)
        # Kept with the weights: a later timm may have another configuration by the same name.
        for name, value in zip(("input_scale", "input_shift"), input_map(own), strict=True):
            self.register_buffer(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Training feature [B, d] in float32, rows of norm 1, of images [B, 3, H, W] (32 x 16 or larger)."""
        return self._feature(images, after_neck=True)

    def retrieve(self, images: Tensor, after_neck: bool = False) -> Tensor:
        """Retrieval feature [B, d] in float32, rows of norm 1, of images [B, 3, H, W].

        It is taken before the neck (the pooled feature, or the Linear's output) or after it (and after the ReLU of
        "fc-relu"). The model's mode is left alone: call ``eval()`` first for features that do not depend on the
        batch.
        """
        return self._feature(images, after_neck)

    def _feature(self, images: Tensor, after_neck: bool) -> Tensor:
        _check_images(images)
        if is_timm(self.arch):
            images = torch.addcmul(self.input_shift, images, self.input_scale)
        pooled = self.backbone(images)
        with torch.autocast(pooled.device.type, enabled=False):
            neck = self.neck if self.embedding == "pool" else self.backbone.fc[1]
            feature = pooled.to(neck.weight.dtype)  # another one after .half() or .bfloat16()
            if self.embedding != "pool":
                feature = self.backbone.fc[0](feature)
            if after_neck:
                feature = neck(feature)
                if self.embedding == "fc-relu":
                    feature = F.relu(feature)
            return F.normalize(feature.float(), dim=1)

    def parameter_groups(self, lr: float, backbone_lr_mult: float) -> list[dict]:
        """Optimiser groups: what was loaded from weights at ``lr * backbone_lr_mult``, the rest at ``lr``.

        The groups and their order depend on ``arch`` and ``embedding`` alone, so the state of an optimiser
        fits a model built without the weights that the first one started from.
        """

        def group(name: str, module: nn.Module, loaded: bool) -> dict:
            rate = lr * backbone_lr_mult if loaded else lr
            return {"name": name, "params": list(module.parameters()), "lr": rate}

        groups = [group("backbone", self.backbone, self.pretrained)]
        if self.embedding == "pool":
            groups.append(group("neck", self.neck, self.neck_pretrained))
        return groups


def build_model(
    arch: str,
    *,
    embedding: str = "pool",
    weights: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
) -> ReIDModel:
    """Build the model ``arch``, from random weights or from ``weights``.

    ``weights`` is "imagenet" (ResNets, through torchvision; networks of timm, through timm) or the path of a file of
    torchvision, torchreid, timm or this package; a classifier in it is left out. ``height`` and ``width`` are those of
    the images, which networks of timm may be built for; others take any. Raises :class:`UserError` for an unknown
    name and for weights that cannot be had, read or fitted.
    """
    model = ReIDModel(arch, embedding, height, width)
    if weights is not None:
        loaded = load_weights(model, str(weights))
        model.pretrained = True
        model.neck_pretrained = any(name.startswith("neck.") for name in loaded.names)
        model.settings_of_weights = loaded.settings
    return model


# Any: OSNet or ResNet, of which only OSNet has an fc; networks of timm have attributes of their own.
def _build_backbone(arch: str, embedding: str) -> Any:
    if arch in OSNET_ARCHITECTURES:
        return OSNet(arch, fc=embedding != "pool")
    from snnet.models.resnet import ResNet  # torchvision, whose import takes seconds

    return ResNet(arch)


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, height, width], got {tuple(images.shape)}")
    height, width = images.shape[2:]
    if min(height, width) < 16 or max(height, width) < 32:
        raise UserError(f"images of {height}x{width} are too small for the network: 32x16 is the least")
