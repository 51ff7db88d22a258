"""Every format that the package reads: a sound file of each, and how it is read."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from snnet.config.commands import ExportCommand, ReportCommand, TrainCommand
from snnet.config.options import config_from, flatten
from snnet.data import build_dataset
from snnet.data.decoding import decode_images, load_image
from snnet.export import export
from snnet.models.weights import read_state_dict
from snnet.report import report
from snnet.retrieval.feature_files import FeatureSet, load_features, save_features
from snnet.retrieval.gallery_cache import gallery_features
from snnet.retrieval.sparse_labels import load_labels, predict_sparse_labels, save_labels
from snnet.retrieval.trained import TrainedModel, load_trained_model
from snnet.train import train
from snnet.training.checkpoint import check_measurements, load_checkpoint
from tests.snnet.tiny_run import draw_market, tiny_options

# How much a reader can know of damage:
#   checked: the format has checksums, or this package's digest: another content is a failure
#   text: a person may have written it: any content that is sound is taken as said
#   loose: the format has no checksum: another content of the same kind is counted as a note
Strictness = Literal["checked", "text", "loose"]


@dataclass(frozen=True)
class Format:
    """A sound file, and how it is read; ``own``: this package wrote it, so that no member can be exchanged."""

    name: str
    file: Path
    read: Callable[[], Any]
    strictness: Strictness
    own: bool = False


def same(one: Any, two: Any) -> bool:
    """Equal in type, shape and every bit, through containers and dataclasses."""
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and bool((one == two).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(two))
    return bool(one == two)


def resumable(path: Path) -> dict[str, Any]:
    """What ``--resume`` reads of a checkpoint."""
    state = load_checkpoint(path)
    check_measurements(state, path)
    return state


def all_formats(folder: Path) -> list[Format]:
    """Write a sound file of every format into ``folder``."""
    data = draw_market(folder / "data", identities=2)
    train(config_from(tiny_options(data, batch_size=6, epochs=2, output_dir=str(folder / "run"))))
    trained = load_trained_model(folder / "run", None, {})
    return [
        *_run_files(folder, folder / "run"),
        *_weights(folder, trained),
        *feature_files(folder),
        _gallery_cache(folder, trained, data / "query"),
        _image_list(folder),
        *_images(folder),
    ]


def _run_files(folder: Path, run: Path) -> list[Format]:
    def configuration() -> Any:
        return flatten(TrainCommand.parse(["--resume", str(run)]).config)

    def page() -> str:
        shutil.rmtree(folder / "page", ignore_errors=True)
        report(ReportCommand.parse([str(run), "--no-images", "--quiet", "--output", str(folder / "page")]))
        return (folder / "page" / "report.html").read_text(encoding="utf-8")

    checkpoint = run / "checkpoint.pt"
    texts = ("results.json", "metrics.jsonl", "environment.json")
    return [
        Format("checkpoint .pt", checkpoint, lambda: resumable(checkpoint), "checked", own=True),
        Format("config.yaml of a run", run / "config.yaml", configuration, "text"),
        *(Format(f"{name} for report", run / name, page, "text") for name in texts),
    ]


def _weights(folder: Path, trained: TrainedModel) -> list[Format]:
    own, pt, foreign = folder / "own.safetensors", folder / "weights.pt", folder / "foreign.safetensors"
    export(ExportCommand.parse(["--checkpoint", str(folder / "run"), "--output", str(own), "--quiet"]))
    state = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    torch.save({"state_dict": state}, pt)
    safetensors.torch.save_file(state, foreign)
    return [
        Format(
            "weights .safetensors of snnet.export", own, lambda: read_state_dict(str(own)), "checked", True
        ),
        Format("weights .pt of others", pt, lambda: read_state_dict(str(pt)), "checked"),
        Format("weights .safetensors of others", foreign, lambda: read_state_dict(str(foreign)), "loose"),
    ]


def feature_files(folder: Path) -> list[Format]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(f"{i:04d}_c1.jpg" for i in range(40))
    numbers = np.arange(40) // 4
    content = FeatureSet(rows, names, numbers, numbers % 2, ("train",) * 40, {"made_by": "a test"})
    formats = []
    for suffix in (".npz", ".safetensors"):
        path = folder / f"own_features{suffix}"
        save_features(path, content)
        formats.append((f"features {suffix} of snnet.extract", path, "checked", True))
    npz, npy, pt = (folder / f"foreign_features{suffix}" for suffix in (".npz", ".npy", ".pt"))
    np.savez(npz, features=rows, pids=numbers)
    np.save(npy, rows)
    torch.save({"features": torch.from_numpy(rows), "pids": torch.from_numpy(numbers)}, pt)
    formats += [
        ("features .npz of others", npz, "checked", False),
        ("features .npy", npy, "loose", False),
        ("features .pt", pt, "checked", False),
    ]
    labels = folder / "labels.npz"
    save_labels(labels, dataclasses.replace(predict_sparse_labels(torch.from_numpy(rows)), names=names))
    return [
        *(
            Format(name, path, lambda path=path: load_features(path), strictness, own)  # type: ignore[misc]
            for name, path, strictness, own in formats
        ),
        Format("labels .npz", labels, lambda: load_labels(labels), "checked", own=True),
    ]


def _gallery_cache(folder: Path, trained: TrainedModel, gallery: Path) -> Format:
    """Whatever the cache holds, the features that come are the right ones."""
    images = build_dataset("folder", str(gallery)).train
    kept = folder / "kept"

    def read() -> tuple[tuple[str, ...], np.ndarray]:
        found, features = gallery_features(trained, images, gallery, kept)
        return found.paths, features

    read()
    return Format("gallery cache of snnet.search", next(kept.glob("features-*")), read, "checked", own=True)


def _image_list(folder: Path) -> Format:
    root = folder / "MSMT17_V1"
    lines = {
        "train": "0000/0000_000_01_0303morning_0015_0.jpg 0",
        "val": "0001/0001_000_02_0303noon_0015_0.jpg 1",
    }
    lines |= {
        "query": "0000/0000_000_03_0303morning_0020_0.jpg 0",
        "gallery": "0000/0000_001_04_0303noon_0020_0.jpg 0",
    }
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
    for name, line in lines.items():
        (root / f"list_{name}.txt").write_text(f"{line}\n" * 1 + line.replace("_0.jpg", "_1.jpg") + "\n")
    return Format("image list", root / "list_train.txt", lambda: build_dataset("msmt17", str(root)), "text")


def _images(folder: Path) -> list[Format]:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (48, 24, 3), dtype=np.uint8)
    pixels[:, :12] = pixels[:1, :1]
    picture = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, Callable[[Path], None]] = {
        "png": lambda path: picture.save(path),
        "jpg": lambda path: picture.save(path, exif=exif),
        "bmp": lambda path: picture.save(path),
        "webp": lambda path: picture.save(path, lossless=True),
        "tif": lambda path: picture.save(path, compression="tiff_lzw"),
        "gif": lambda path: picture.quantize(64).save(path),
        "16.png": lambda path: deep.save(path),
        "rgba.png": lambda path: picture.convert("RGBA").save(path),
    }
    formats = []
    for suffix, save in made.items():
        path = folder / f"image.{suffix}"
        save(path)
        formats.append(Format(f"image .{suffix}", path, lambda path=path: load_image(str(path)), "loose"))  # type: ignore[misc]
    whole = folder / "images"
    whole.mkdir()
    shutil.copy(folder / "image.png", whole / "0.png")
    images = build_dataset("folder", str(whole)).train
    formats.append(
        Format("image split", whole / "0.png", lambda: decode_images(images, cache=True).pixels, "loose")
    )
    return formats
