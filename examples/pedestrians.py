"""What the examples share: images of the built-in synthetic set, a small network, and batches."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet.models import ReIDModel, build_model
from snnet.synthetic.image import draw_image
from snnet.synthetic.plan import TRAIN_FOLDER, plan_shots

BATCH = 32


def arguments(description: str | None) -> argparse.Namespace:
    """The flags of every example."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=int, default=1200, help="training images (default: 1200 of 2400)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over them (default: 6)")
    parser.add_argument("--warm-up", type=int, default=4, help="epochs without groups or labels (default: 4)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    if flags.images < BATCH:
        parser.error(f"--images must be at least {BATCH}, a batch, got {flags.images}")
    return flags


class Pedestrians(NamedTuple):
    """Training images and what only an evaluation may look at."""

    images: Tensor  # float32 [n, 3, 64, 32], around 0
    identities: Tensor  # int64 [n]
    cameras: Tensor  # int64 [n]


def draw(count: int, device: str) -> Pedestrians:
    """The first ``count`` training images of the set."""
    shots = [shot for shot in plan_shots(seed=0) if shot.folder == TRAIN_FOLDER][:count]
    pixels = np.stack([draw_image(0, shot)[::2, ::2] for shot in shots])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 64 - 2
    who = torch.tensor([(shot.identity, shot.camera) for shot in shots])
    return Pedestrians(images.to(device), *who.to(device).unbind(1))


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
    features = [model(part) for part in images.split(256) if len(part)]
    model.train()
    return torch.cat([images.new_zeros(0, model.feature_dim), *features])


def accuracy(model: ReIDModel, data: Pedestrians) -> float:
    """Share of the images whose nearest image of another camera shows the same identity."""
    features = extract(model, data.images)
    similarity = sk.memory_similarity(features, features)
    same_camera = data.cameras[:, None] == data.cameras
    nearest = similarity.masked_fill(same_camera, -torch.inf).argmax(1)
    return float((data.identities[nearest] == data.identities).float().mean())
