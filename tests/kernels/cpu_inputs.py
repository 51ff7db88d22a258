"""Inputs of the tests of the compiled libraries."""

import torch

from snnet_kernels.testing import clustered_features


def exact_rows(n: int, d: int, seed: int) -> torch.Tensor:
    """Small integers times a power of two: every product is exact in float32, with many ties."""
    return torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(seed)).float() / 4


def unit_rows(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows of length exactly 1, of ±1 in one place or ±1/2 in four: updates by such features are exact too."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 4, (n, d), generator=generator).clamp_max(1).float() * 2 - 1  # mostly +1
    rows = torch.zeros(n, d)
    four = torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool)
    rows[four, :4] = signs[four, :4] / 2
    place = torch.randint(0, d, (n,), generator=generator)
    single = (~four).nonzero().flatten()
    rows[single, place[single]] = signs[single, place[single]]
    return rows


def memory_of(kind: str, n: int, d: int, seed: int) -> torch.Tensor:
    return rearranged((clustered_features if kind == "clustered" else exact_rows)(n, d, seed=seed), kind)


def rearranged(memory: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows that are alike or zero, where ``kind`` asks for them."""
    n = len(memory)
    if kind == "same":
        memory = memory[:1].expand_as(memory).contiguous()
    elif kind == "zero rows":
        memory[::2] = 0
    elif kind == "duplicates":
        memory = memory[torch.arange(n) // 3].contiguous()
    return memory


def indices(n: int, batch: int, seed: int) -> torch.Tensor:
    return torch.randint(n, (batch,), generator=torch.Generator().manual_seed(seed))
