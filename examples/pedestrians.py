"""What the examples share: images of the built-in synthetic set, a small network, and batches."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet.data.synthetic.image import draw_image
from snnet.data.synthetic.plan import TRAIN_FOLDER, plan_shots
from snnet.models import ReIDModel, build_model

BATCH = 32


def arguments(description: str | None) -> argparse.Namespace:
    """The flags of every example."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--images", type=int, default=2400, help="training images, at most 2,400 (default: all)"
    )
    parser.add_argument("--epochs", type=int, default=3, help="passes over them (default: 3)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def draw(count: int, device: str) -> tuple[Tensor, Tensor]:
    """The first ``count`` training images, float32 [count, 3, 64, 32] around 0, and their identities [count]."""
    shots = [shot for shot in plan_shots(seed=0) if shot.folder == TRAIN_FOLDER][:count]
    pixels = np.stack([draw_image(0, shot)[::2, ::2] for shot in shots])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 64 - 2
    return images.to(device), torch.tensor([shot.identity for shot in shots], device=device)


def network(device: str) -> ReIDModel:
    """A small OSNet with random weights; it returns L2-normalised features."""
    torch.manual_seed(0)
    return build_model("osnet_ain_x0_25").to(device)


def batches(images: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(images [B, 3, 64, 32], half of them mirrored; positions [B]) in an order of the epoch's own."""
    generator = torch.Generator().manual_seed(epoch)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for index in order.split(BATCH)[: len(images) // BATCH]:
        mirrored = torch.rand(len(index), generator=generator).to(images.device) < 0.5
        batch = images[index]
        yield torch.where(mirrored[:, None, None, None], batch.flip(3), batch), index


@torch.no_grad()
def extract(model: ReIDModel, images: Tensor) -> Tensor:
    """Features [n, d] of all images, the network in ``eval()``."""
    model.eval()
    features = torch.cat([model(part) for part in images.split(256)])
    model.train()
    return features


def neighbor_accuracy(model: ReIDModel, images: Tensor, identities: Tensor) -> float:
    """Share of the images whose nearest other image shows the same identity."""
    features = extract(model, images)
    everyone = torch.arange(len(features), device=features.device)
    nearest = sk.nearest_neighbors(features, everyone)[0][:, 0]
    return float((identities[nearest] == identities).float().mean())
