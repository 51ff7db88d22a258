"""Inputs for tests and benchmarks: features shaped like those of a re-identification network in training."""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 0.75  # the typical length of a deviation from the centre


def clustered_features(n: int, d: int, *, identities: int | None = None, seed: int = 0) -> Tensor:
    """L2-normalised float32 features [n, d] in clusters of unequal size, with hubs between the clusters.

    The distance to a cluster's centre varies from image to image, every fifth image lies between two
    clusters, and some clusters have neighbours: with the usual threshold 0.6 more than a fifth of the
    candidates fail the cycle check, so that plain thresholding gives other labels. ``identities`` is the number of
    clusters (default n / 17).
    """
    generator = torch.Generator().manual_seed(seed)
    identities = max(1, n // 17) if identities is None else identities
    centres = torch.nn.functional.normalize(
        torch.randn(identities, d, generator=generator, dtype=torch.float32), dim=1
    )
    kin = torch.randint(identities, (identities,), generator=generator)
    centres = torch.nn.functional.normalize(centres + 0.9 * centres[kin], dim=1)
    share = (
        torch.rand(identities, generator=generator, dtype=torch.float32).pow(4) + 0.05
    )  # few large clusters, many small
    identity = (
        torch.multinomial(share, n, replacement=True, generator=generator) if n else torch.zeros(0).long()
    )
    other = torch.multinomial(share, n, replacement=True, generator=generator) if n else identity
    hub = torch.arange(n) % 5 == 4
    base = torch.where(hub[:, None], centres[identity] + 0.9 * centres[other], centres[identity])
    base = torch.nn.functional.normalize(base, dim=1)
    noise = torch.nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float32), dim=1)
    length = SPREAD * (0.3 + 1.4 * torch.rand(n, 1, generator=generator, dtype=torch.float32))
    return torch.nn.functional.normalize(base + length * noise, dim=1)
