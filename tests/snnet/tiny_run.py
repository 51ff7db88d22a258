"""A dataset small enough to train on in seconds, the options of such a run, what it ends with, and a checkpoint."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from snnet.training.checkpoint import load_checkpoint, rng_state
from tests.forks import Answer

IDENTITIES, CAMERAS, IMAGES = 8, 2, 3  # of each split; images of an identity in a camera
# What one of several processes says when it ends because of another, see `without_cause`.
GONE = "another process of this command has ended, and so does this one\n"
SILENT = "another process of this command was silent for --timeout seconds: this one ends\n"


def without_cause(answer: Answer) -> Answer:
    """How a process ended, without the error of a connection that told it of the end of another."""
    text = re.sub(r"^(.*another process of this command .*) \(.+\)$", r"\1", answer.stderr, flags=re.M)
    return answer._replace(stderr=text)


def draw_market(root: Path, *, cameras: int = CAMERAS, identities: int = IDENTITIES) -> Path:
    """Two-coloured 32x16 'pedestrians' in the Market-1501 layout; a camera darkens, noise differs per image."""
    noise = np.random.default_rng(0)
    for split, first in (("bounding_box_train", 1), ("query", 101), ("bounding_box_test", 101)):
        (root / split).mkdir(parents=True)
        for pid in range(first, first + identities):
            clothes = np.random.default_rng(pid).integers(60, 256, (2, 1, 3))
            for camera in range(1, cameras + 1):
                for frame in range(1 if split == "query" else IMAGES):
                    picture = np.repeat(np.repeat(clothes, 16, axis=0), 16, axis=1) / camera**0.5
                    picture = (picture + noise.normal(0, 20, picture.shape)).clip(0, 255)
                    number = frame + 50 * (split == "query")
                    name = f"{pid:04d}_c{camera}s1_{number:06d}_00.png"
                    Image.fromarray(picture.astype(np.uint8)).save(root / split / name)
    return root


def environment() -> dict[str, str]:
    """A bare one for a process whose output is compared: the same packages, and one thread as here."""
    return {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


def tiny_options(data: Path, **others: Any) -> dict[str, Any]:
    """Flag values of a run that takes a second an epoch."""
    return {
        "dataset": "market1501", "data_dir": str(data), "arch": "osnet_x0_25", "weights": None,
        "height": 32, "width": 16, "batch_size": 16, "workers": 0, "epochs": 3, "lr": 0.01,
        "label_start_epoch": 1, "device": "cpu", "deterministic": True, **others,
    }  # fmt: skip


def command_line(options: dict[str, Any]) -> list[str]:
    """The flags that say ``options``."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        )
    return words


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """Metrics or results without their times."""
    return {name: value for name, value in record.items() if not name.startswith("seconds")}


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each epoch of a run but their times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [untimed(json.loads(line)) for line in lines]


def outcome(folder: Path) -> tuple[Any, ...]:
    """What a finished run ends with but its times: metrics, results, network, head and the optimiser's state."""
    checkpoint = load_checkpoint(folder)
    results = untimed(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    state = checkpoint["model"], checkpoint["head"], checkpoint["optimizer"]["state"]
    return records(folder), results, *state


def contents(value: float = 1.0) -> dict[str, Any]:
    """What a small checkpoint holds."""
    return {
        "model": {"weight": torch.full((2, 3), value)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "name": "backbone"}]},
        "head": {"memory.features": torch.eye(3)},
        "config": {"lr": 0.1, "weights": None},
        "rng": rng_state(),
        "before": {"mAP": 0.25},
        "metrics": [{"epoch": 0, "loss": value}],
        "images": 7,
        "torch": "2.14",
    }
