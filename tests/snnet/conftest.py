"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from snnet.config.options import config_from
from snnet.system.progress import set_quiet
from snnet.train import train
from tests.snnet import tiny_run


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


@pytest.fixture(autouse=True)
def determinism_ends() -> Iterator[None]:
    """What a command with --deterministic leaves set ends with its test."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training images of 8 identities in 2 cameras, 16 queries, a gallery of 48."""
    return tiny_run.draw_market(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def tiny_options(tiny_market: Path) -> dict[str, Any]:
    """Flag values of a run on ``tiny_market`` that takes a second an epoch."""
    return tiny_run.tiny_options(tiny_market)


@pytest.fixture(scope="session")
def finished_run(tiny_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch, for tests that only read it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config_from({**tiny_options, "epochs": 1, "output_dir": str(folder)}))
    return folder
