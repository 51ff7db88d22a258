"""Small files that stand for much: of memory, of time, of depth."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from snnet.config.resolve import load_yaml
from snnet.data import build_dataset
from snnet.data.decoding import decode_images
from snnet.files.run_files import CHECKPOINT_FORMAT
from snnet.models.weights import read_state_dict
from snnet.reporting.run import load_run
from snnet.retrieval.feature_files import load_features
from snnet.retrieval.sparse_labels import load_labels
from snnet.training.checkpoint import VERSION, load_checkpoint
from tests.hard.formats import resumable

Try = tuple[str, Callable[[], str]]
UNPACKED = 3 << 29  # bytes that a member of a zip file unpacks to: more than a try may take


def bombs(folder: Path) -> list[Try]:
    """Every bomb by its name, with a function that reads it; each is refused, or read within the bounds."""
    folder.mkdir()
    return [*_tensors(folder), *_archives(folder), *_texts(folder), *_pictures(folder)]


def _reading(read: Callable[[Any], Any], argument: Any) -> Callable[[], str]:
    def one() -> str:
        read(argument)
        return "read"

    return one


def _checkpoint(path: Path, **others: Any) -> Path:
    contents: dict[str, Any] = {
        "format": CHECKPOINT_FORMAT, "version": VERSION, "model": {}, "optimizer": {}, "head": {}, "config": {},
        "rng": {}, "before": {}, "metrics": [], "images": 0, "torch": "2.0", **others,
    }  # fmt: skip
    torch.save(contents, path)
    return path


def _tensors(folder: Path) -> list[Try]:
    wide = torch.zeros(1, 1).expand(2_000_000, 1024)
    nested: tuple[Any, ...] = (0,)
    for _ in range(28):
        nested = (nested, nested)
    shared = torch.zeros(1 << 20)
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    files: dict[str, Any] = {
        "expanded tensor": wide,
        "expanded extra key": {"weight": torch.zeros(2, 2), "extra": wide},
        "many views of one storage": {f"w{i}": shared for i in range(4000)},
        "nested tuples": {"weight": torch.zeros(2), "extra": nested},
        "deep lists": {"weight": deep},
        "meta tensor": {"features": torch.empty(10**7, 10**5, device="meta")},
        "sparse tensor": {
            "features": torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**7, 10**6))
        },
        "long name": {"w" * 10_000_000: torch.zeros(2)},
    }
    tries: list[Try] = []
    for name, content in files.items():
        path = folder / f"{name.replace(' ', '_')}.pt"
        torch.save(content, path)
        tries.append((f"weights .pt: {name}", _reading(read_state_dict, str(path))))
        tries.append((f"features .pt: {name}", _reading(load_features, path)))
        places = {
            "network": {"model": {"x": content}},
            "ranks": {"before": {"rank1": content}},
            "metrics": {"metrics": [{"epoch": 0, "loss": content, "seconds": 1.0}]},
        }
        for place, parts in places.items():
            inside = _checkpoint(folder / f"{place}_{path.name}", **parts)
            tries.append((f"checkpoint, {place}: {name}", _reading(resumable, inside)))
        wrong = _checkpoint(folder / f"version_{path.name}", version=content)
        tries.append((f"checkpoint version: {name}", _reading(load_checkpoint, wrong)))
    return tries


def _npy_header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _deflated_zeros(file: Any, name: str, head: bytes, size: int) -> None:
    """A member of ``head`` and ``size`` zeros, a thousandth as long in the file."""
    block = bytes(1 << 24)
    with file.open(name, "w", force_zip64=True) as member:
        member.write(head)
        for _ in range(size >> 24):
            member.write(block)


def _archives(folder: Path) -> list[Try]:
    rows = np.eye(4, dtype=np.float32)
    plain = io.BytesIO()
    np.save(plain, rows)
    size = UNPACKED
    tries: list[Try] = []

    def archive(name: str, members: dict[str, tuple[bytes, int]]) -> Path:
        path = folder / f"{name}.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for member, (head, zeros) in members.items():
                _deflated_zeros(file, member, head, zeros)
        return path

    large = (_npy_header((size // 16, 4)), size)
    sound = (plain.getvalue(), 0)
    for name, members in {
        "unneeded": {"features.npy": sound, "extra.npy": large},
        "not_an_array": {"features.npy": sound, "readme.txt": (b"", size)},
        "shape_beyond_file": {"features.npy": (_npy_header((10**10, 4)), 0)},
        "negative_shape": {"features.npy": (_npy_header((-4, 4)), 0)},
        "absurd_shape": {"features.npy": (_npy_header((2**62, 2**62)), 0)},
        "large_pids": {"features.npy": sound, "pids.npy": (_npy_header((size // 8,), "<i8"), size)},
        "long_text": {"features.npy": sound, "names.npy": (_npy_header((4,), "<U50000000"), 800_000_000)},
    }.items():
        path = archive(name, members)
        tries.append((f"features .npz: {name}", _reading(load_features, path)))
        tries.append((f"labels .npz: {name}", _reading(load_labels, path)))
    for name, shape in {
        "beyond_file": (10**10, 4),
        "negative": (-4, 4),
        "absurd": (2**62, 2**62),
        "none": (0, 4),
    }.items():
        path = folder / f"{name}.npy"
        path.write_bytes(_npy_header(shape) + rows.tobytes())
        tries.append((f"features .npy: {name}", _reading(load_features, path)))
    for name, header in {
        "beyond_file": {"features": {"dtype": "F32", "shape": [2**31, 4], "data_offsets": [0, 2**35]}},
        "long_header": {"__metadata__": {"a": "b" * 50_000_000}},
    }.items():
        text = json.dumps(header).encode()
        path = folder / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        tries.append((f"features .safetensors: {name}", _reading(load_features, path)))
        tries.append((f"weights .safetensors: {name}", _reading(read_state_dict, str(path))))
    return tries


def _texts(folder: Path) -> list[Try]:
    levels = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    aliases = f"[{', '.join(levels)}]"  # the last stands for 9 ** 10 letters
    texts = {
        "aliases": aliases,
        "aliases as a value": f"epochs: {aliases}",
        "aliases as text": f"data_dir: {aliases}",
        "aliases as a choice": f"dataset: {aliases}",
        "aliases as a key": f"? {aliases}\n: 1",
        "merged aliases": f"<<: {aliases}",
        "deep lists": "[" * 100_000,
        "deep maps": "{a: " * 20_000,
        "deep indentation": "\n".join(f"{' ' * i}a:" for i in range(3000)),
        "digits": f"epochs: {'9' * 1_000_000}",
        "long value": f"dataset: {'x' * 20_000_000}",
        "long key": f"{'x' * 2_000_000}: 1",
        "many keys": "\n".join(f"k{i}: 1" for i in range(200_000)),
        "sexagesimal": f"lr: {'1:' * 20_000}1",
    }
    tries: list[Try] = []
    for name, text in texts.items():
        path = folder / f"{name.replace(' ', '_')}.yaml"
        path.write_text(text, encoding="utf-8")
        tries.append((f"YAML: {name}", _reading(load_yaml, path)))
    jsons = {
        "deep lists": "[" * 100_000, "deep objects": '{"a":' * 100_000, "digits": f'{{"epoch": {"9" * 1_000_000}}}',
        "infinite": '{"epoch": 0, "loss": 1e999}', "long": f'{{"epoch": 0, "{"x" * 20_000_000}": 1}}',
    }  # fmt: skip
    for name, text in jsons.items():
        for file in ("results.json", "metrics.jsonl", "environment.json"):
            run = folder / f"run_{name.replace(' ', '_')}_{file}"
            run.mkdir()
            (run / "config.yaml").write_text(yaml.safe_dump({"epochs": 1}), encoding="utf-8")
            (run / file).write_text(text, encoding="utf-8")
            tries.append((f"{file}: {name}", _reading(load_run, run)))
    return tries


def _png(width: int, height: int, depth: int, colour: int, rows: int) -> bytes:
    """A PNG that says to be of this size and holds so many rows of zeros."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    deflate = zlib.compressobj(9)
    row = bytes(1 + width * channels * depth // 8)
    data = b"".join(deflate.compress(row) for _ in range(rows)) + deflate.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _pictures(folder: Path) -> list[Try]:
    side = 13_300
    files = {
        "three of 16 bits": [_png(side, side, 16, 0, side)] * 3,
        "of 8 bits": [_png(9_000, 9_000, 8, 2, 9_000)],
        "beyond its data": [_png(60_000, 60_000, 8, 2, 4)],
        "wide": [_png(170_000_000, 1, 8, 0, 1)],
        "tall": [_png(1, 170_000_000, 8, 0, 4)],
    }
    tries: list[Try] = []
    for name, contents in files.items():
        place = folder / f"pictures_{name.replace(' ', '_')}"
        place.mkdir()
        for number, content in enumerate(contents):
            (place / f"{number}.png").write_bytes(content)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "sound.png")
        images = build_dataset("folder", str(place)).train
        tries.append((f"images: {name}", _reading(decode_images, images)))
        tries.append((f"images: {name}, left out", lambda images=images: _left_out(images)))  # type: ignore[misc]
    return tries


def _left_out(images: Any) -> str:
    decode_images(images, skip_bad=True)
    return "read"
