"""Inputs that the kernel tests share, whatever runs the kernels."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import strategies as st
from torch.nn.functional import normalize

from snnet_kernels import reference
from snnet_kernels.backends import table
from snnet_kernels.testing import clustered_features

needs_cpu_library = pytest.mark.skipif(
    "cpu" not in table.servers("mplp", "cpu"), reason="the compiled CPU library is not loaded"
)

# Around a 64-float block, a 512-float step, a 128-bit label word, and sizes with every kind of rest.
sizes = st.one_of(
    st.integers(1, 40),
    st.sampled_from([63, 64, 65, 127, 128, 129, 511, 513, 1000, 1999]),
    st.integers(41, 700),
)


def exact_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Small integers times a power of two: every product is exact in float32, with many ties."""
    return torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(seed)).float() / 4


def unit_rows(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows of length exactly 1, of ±1 in one place or ±1/2 in four: updates by such features are exact too."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 4, (n, d), generator=generator).clamp_max(1).float() * 2 - 1  # mostly +1
    rows = torch.zeros(n, d)
    four = torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool) & (d >= 4)
    rows[four, :4] = signs[four, :4] / 2
    place = torch.randint(0, d, (n,), generator=generator)
    single = (~four).nonzero().flatten()
    rows[single, place[single]] = signs[single, place[single]]
    return rows


def memory_of(kind: str, n: int, d: int, seed: int) -> torch.Tensor:
    """Clustered rows if ``kind`` is that, else exact ones, and what :func:`rearranged` makes of them."""
    return rearranged((clustered_features if kind == "clustered" else exact_rows)(n, d, seed=seed), kind)


def exact_memory_of(kind: str, n: int, d: int, seed: int) -> torch.Tensor:
    """The same, so rounded that every product is exact in float32."""
    return (64 * memory_of(kind, n, d, seed)).round() / 64


def rearranged(memory: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows that are alike or zero, where ``kind`` asks for them."""
    n = len(memory)
    if kind == "same":
        memory = memory[:1].expand_as(memory).contiguous()
    elif kind == "zero":
        memory[:] = 0
    elif kind == "zero rows":
        memory[::2] = 0
    elif kind == "duplicates":
        memory = memory[torch.arange(n) // 3].contiguous()
    return memory


def batch_of(n: int, size: int, seed: int = 0) -> torch.Tensor:
    """Indices of a batch, with repeats where it is larger than a few."""
    return torch.randint(n, (size,), generator=torch.Generator().manual_seed(seed))


def label_sets(
    batch: int, n: int, shares: Sequence[float] = (0.01, 0.05, 0.3), seed: int = 3
) -> list[torch.Tensor]:
    """Packed labels, a set for each share of positives."""
    generator = torch.Generator().manual_seed(seed)
    return [reference.pack_labels(torch.rand(batch, n, generator=generator) < share) for share in shares]


def moving_batch(
    memory: torch.Tensor, batch: int, generator: torch.Generator, repeated: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a batch, and features near their rows, nearly opposite to them, and far."""
    n, d = memory.shape
    index = (
        torch.randint(n, (batch,), generator=generator)
        if repeated
        else torch.randperm(n, generator=generator)[:batch]
    )
    noise = torch.randn(len(index), d, generator=generator)
    features = normalize(memory[index] + 0.2 * noise, dim=1)
    features[:2] = normalize(noise[:2] * 1e-2 - memory[index[:2]], dim=1)
    features[2:3] = normalize(noise[2:3], dim=1)
    return index, features
