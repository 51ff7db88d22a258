"""ResNet-18/34/50/101/152 up to global average pooling, with a last stride of 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

_STAGES: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}


class ResNet(TorchvisionResNet):
    """torchvision's ResNet without its classifier; parameters keep torchvision's names.

    The first block of the last stage has stride 1 instead of 2, so that the map that is pooled has twice
    the height and width (16 x 8 for 256 x 128 input): the usual choice in person re-identification.
    """

    def __init__(self, arch: str) -> None:
        block, layers = _STAGES[arch]
        super().__init__(block, layers)
        self.pooled_dim: int = self.fc.in_features
        del self.fc
        for module in self.layer4[0].modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)

    def feature_map(self, images: Tensor) -> Tensor:
        """Last feature map [B, pooled_dim, H/16, W/16] of images [B, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, images: Tensor) -> Tensor:
        """Pooled feature [B, pooled_dim] in float32 of images [B, 3, H, W]."""
        return self.feature_map(images).mean((2, 3), dtype=torch.float32)
