"""OSNet, OSNet-AIN and OSNet-IBN (Zhou et al., ICCV 2019 and TPAMI 2021) up to global average pooling.

Modules carry the names that torchreid gives them, so its published weights load by name.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnet.config.options import Architecture

_WIDTHS: dict[str, tuple[int, int, int, int]] = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
# Blocks with instance normalisation, in network order: AIN's were found by the architecture search of its paper.
_INSTANCE_NORM_BLOCKS = {
    "osnet": (False, False, False, False, False, False),
    "osnet_ain": (True, True, False, True, True, False),
    "osnet_ibn": (True, True, False, False, False, False),
}

_FC_DIM = 512
_NUM_STREAMS = 4

OSNET_ARCHITECTURES: tuple[str, ...] = tuple(
    arch for arch in get_args(Architecture) if arch.startswith("osnet")
)


class ConvNorm(nn.Module):
    """Convolution without bias, then a normalisation ("batch", "instance" or "none"), then maybe ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        norm: str = "batch",
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        # The published weights call it "bn" whichever normalisation it is.
        self.bn: nn.Module | None = None
        if norm == "batch":
            self.bn = nn.BatchNorm2d(out_channels)
        elif norm == "instance":
            self.bn = nn.InstanceNorm2d(out_channels, affine=True)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return F.relu(x, inplace=True) if self.relu else x


class LiteConv(nn.Module):
    """Lite 3x3 convolution: pointwise, then depthwise 3x3, BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv2(self.conv1(x))), inplace=True)


def _stream(channels: int, depth: int) -> nn.Sequential:
    """A stream whose receptive field is (2·depth + 1)²."""
    return nn.Sequential(*(LiteConv(channels) for _ in range(depth)))


REDUCTION = 16  # channels of an aggregation gate for one of its hidden layer


class AggregationGate(nn.Module):
    """The unified aggregation gate: one small network that weighs the channels of every stream.

    ``sum_t G(x_t) * x_t`` with ``G(x) = sigmoid(W2 relu(W1 mean(x)))`` and W1, W2 shared by the streams.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # 1x1 convolutions by their shape, as published; applied to pooled vectors they are plain products.
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1)

    def forward(self, streams: list[Tensor]) -> Tensor:  # each [B, C, H, W]
        # All streams in one pass: the vectors are tiny, and a call for each would cost more than its work.
        pooled = torch.cat([stream.mean((2, 3)) for stream in streams])
        hidden = F.relu(F.linear(pooled, self.fc1.weight.flatten(1), self.fc1.bias))
        gates = torch.sigmoid(F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias))
        # Neither chunk() nor len(): an exported graph would hold the batch size that it was traced with.
        batch, channels = streams[0].shape[:2]
        gates_by_stream = gates.view(len(streams), batch, channels, 1, 1).unbind()
        fused = streams[0] * gates_by_stream[0]
        for stream, gate in zip(streams[1:], gates_by_stream[1:], strict=True):
            fused = torch.addcmul(fused, stream, gate)
        return fused


class OmniScaleBlock(nn.Module):
    """Residual block of four streams with receptive fields 3, 5, 7 and 9, fused by the gate.

    ``ain`` selects the names of the AIN networks. ``instance_norm`` adds an InstanceNorm: with ``ain`` on the
    residual, in the place of its last BatchNorm; without (IBN) on the sum of residual and shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, ain: bool = False, instance_norm: bool = False
    ) -> None:
        super().__init__()
        middle = out_channels // 4
        self.conv1 = ConvNorm(in_channels, middle)
        self.ain = ain
        if ain:
            self.conv2 = nn.ModuleList(
                nn.Sequential(OrderedDict(layers=_stream(middle, depth)))
                for depth in range(1, _NUM_STREAMS + 1)
            )
        else:
            self.conv2a = LiteConv(middle)
            self.conv2b = _stream(middle, 2)
            self.conv2c = _stream(middle, 3)
            self.conv2d = _stream(middle, 4)
        self.gate = AggregationGate(middle)
        self.conv3 = ConvNorm(
            middle, out_channels, norm="none" if ain and instance_norm else "batch", relu=False
        )
        self.downsample = (
            ConvNorm(in_channels, out_channels, relu=False) if in_channels != out_channels else None
        )
        self.IN = nn.InstanceNorm2d(out_channels, affine=True) if instance_norm else None

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        streams = self.conv2 if self.ain else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        residual = self.conv3(self.gate([stream(reduced) for stream in streams]))
        if self.IN is not None and self.ain:
            residual = self.IN(residual)
        total = residual + (x if self.downsample is None else self.downsample(x))
        if self.IN is not None and not self.ain:
            total = self.IN(total)
        return F.relu(total, inplace=True)


def _stage(
    in_channels: int, out_channels: int, ain: bool, instance_norm: tuple[bool, ...], halve: bool
) -> nn.Sequential:
    """Two blocks, and the halving of the map where it belongs to the stage."""
    layers: list[nn.Module] = [
        OmniScaleBlock(in_channels, out_channels, ain, instance_norm[0]),
        OmniScaleBlock(out_channels, out_channels, ain, instance_norm[1]),
    ]
    return nn.Sequential(*layers, *([_halving(out_channels)] if halve else []))


def _halving(channels: int) -> nn.Sequential:
    return nn.Sequential(ConvNorm(channels, channels), nn.AvgPool2d(2))


class OSNet(nn.Module):
    """OSNet, OSNet-AIN or OSNet-IBN without its classifier.

    With ``fc`` the network's own Linear(pooled_dim, 512) and BatchNorm1d exist as ``fc``; `forward` ends
    before them in either case.
    """

    def __init__(self, arch: str, fc: bool = False) -> None:
        super().__init__()
        family, width = arch.split("_x")
        ain = family == "osnet_ain"
        stem, *stages = _WIDTHS[f"x{width}"]
        norms = _INSTANCE_NORM_BLOCKS[family]
        self.pooled_dim: int = stages[-1]
        self.conv1 = ConvNorm(3, stem, 7, stride=2, norm="batch" if family == "osnet" else "instance")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # The families differ in where the halving of the map is filed: in the stage, or beside it.
        self.conv2 = _stage(stem, stages[0], ain, norms[0:2], halve=not ain)
        self.pool2 = _halving(stages[0]) if ain else nn.Identity()
        self.conv3 = _stage(stages[0], stages[1], ain, norms[2:4], halve=not ain)
        self.pool3 = _halving(stages[1]) if ain else nn.Identity()
        self.conv4 = _stage(stages[1], stages[2], ain, norms[4:6], halve=False)
        self.conv5 = ConvNorm(stages[2], stages[2])
        self.fc = nn.Sequential(nn.Linear(self.pooled_dim, _FC_DIM), nn.BatchNorm1d(_FC_DIM)) if fc else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def feature_map(self, images: Tensor) -> Tensor:
        """Last feature map [B, pooled_dim, H/16, W/16] of images [B, 3, H, W]."""
        x = self.maxpool(self.conv1(images))
        x = self.pool2(self.conv2(x))
        x = self.pool3(self.conv3(x))
        return self.conv5(self.conv4(x))

    def forward(self, images: Tensor) -> Tensor:
        """Pooled feature [B, pooled_dim] in float32 of images [B, 3, H, W]."""
        return self.feature_map(images).mean((2, 3), dtype=torch.float32)
