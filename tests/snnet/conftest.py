"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from snnet.system.progress import set_quiet
from tests.snnet.tiny_run import draw_market


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much to them while other processes are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def not_quiet() -> Iterator[None]:
    """What a command was told with --quiet ends with its test."""
    yield
    set_quiet(False)


@pytest.fixture(scope="session")
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training images of 8 identities in 2 cameras, 16 queries, a gallery of 48."""
    return draw_market(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def tiny_options(tiny_market: Path) -> dict[str, Any]:
    """Flag values of a run that takes a second an epoch."""
    return {
        "dataset": "market1501", "data_dir": str(tiny_market), "arch": "osnet_x0_25", "weights": None,
        "height": 32, "width": 16, "batch_size": 16, "workers": 0, "epochs": 3, "lr": 0.01,
        "label_start_epoch": 1, "device": "cpu", "deterministic": True,
    }  # fmt: skip
