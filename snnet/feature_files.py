"""Features of images in a file: written whole or not at all, read from this package and from others."""

from __future__ import annotations

import json
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from snnet.errors import UserError
from snnet.outputs import check_output, write_atomically

SUFFIXES = (".npz", ".safetensors")
TORCH_SUFFIXES = (".pt", ".pth")  # read, and not written
_TEXT = ("names", "splits")
_NUMBERS = ("pids", "camids")


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of n images, and what else is known of them (None: nothing).

    Attributes:
        features: float32 [n, d].
        names: the image files, relative to the folder of the dataset.
        pids, camids: int64 [n] identities and cameras.
        splits: the split that each image belongs to.
        metadata: how the features were made; values that JSON can hold.

    Raises:
        TypeError: ``features``, ``pids`` or ``camids`` is no numpy array.
        ValueError: ``features`` has no two dimensions, or a field's length is not the number of rows.
    """

    features: np.ndarray
    names: tuple[str, ...] | None = None
    pids: np.ndarray | None = None
    camids: np.ndarray | None = None
    splits: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("features", *_NUMBERS):
            values = getattr(self, name)
            if not isinstance(values, np.ndarray) and (values is not None or name == "features"):
                raise TypeError(f"{name} must be a numpy array, got {type(values).__name__}")
        if self.features.ndim != 2:
            raise ValueError(f"features must be [n, d], got shape {self.features.shape}")
        for name in (*_TEXT, *_NUMBERS):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.features):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.features)} features")


def save_features(path: Path | str, content: FeatureSet) -> None:
    """Write ``content`` to a ``.npz`` or ``.safetensors`` file.

    In a ``.npz`` every field is an array of its name, ``metadata`` being JSON text; none needs pickle. In a
    ``.safetensors`` file text is JSON in the header's metadata. Raises :class:`~snnet.errors.UserError` for
    another ending, or where the file cannot be written.
    """
    path = Path(path)
    check_output(path, SUFFIXES)
    arrays: dict[str, Any] = {"features": content.features.astype(np.float32, copy=False)}
    arrays |= {
        name: np.asarray(values, np.int64)
        for name in _NUMBERS
        if (values := getattr(content, name)) is not None
    }
    texts = {name: list(values) for name in _TEXT if (values := getattr(content, name)) is not None}

    def write(file: IO[bytes]) -> None:
        if path.suffix == ".npz":
            texts_as_arrays: dict[str, Any] = {
                name: np.array(values, dtype=np.str_) for name, values in texts.items()
            }
            np.savez(file, **arrays, **texts_as_arrays, metadata=np.array(json.dumps(content.metadata)))
        else:
            header = {name: json.dumps(values) for name, values in texts.items()}
            header["metadata"] = json.dumps(content.metadata)
            file.write(safetensors.numpy.save(arrays, metadata=header))

    write_atomically(path, write)


def load_features(path: Path | str, key: str | None = None) -> FeatureSet:
    """Read features from a ``.npz``, ``.npy``, ``.safetensors``, ``.pt`` or ``.pth`` file, of this package or another.

    Args:
        path: the file. No file can run code: Python objects are refused. One of ``torch.save`` holds a tensor, or a
            dict with tensors by name.
        key: the name of the array [n, d] in a file that holds several; None: ``features``, or the only
            two-dimensional array of real numbers.

    Raises:
        UserError: the file cannot be read, holds no such array or several, or values that are not finite; or
            identities, cameras or names of another length.
    """
    path = Path(path)
    arrays, texts = _read(path)
    features = _real_matrix(arrays, key, path)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: {len(bad)} of {len(features)} features are not finite, first row {bad[0]}")
    known: dict[str, Any] = {name: _numbers(arrays[name], name, path) for name in _NUMBERS if name in arrays}
    values = {name: _from_json(text) for name, text in texts.items()}
    lists: dict[str, Any] = {
        name: tuple(map(str, values[name])) for name in _TEXT if isinstance(values.get(name), list)
    }
    metadata = values.get("metadata")
    try:
        return FeatureSet(features, **lists, **known, metadata=metadata if isinstance(metadata, dict) else {})
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file, and its texts as JSON."""
    if path.suffix not in (".npy", *SUFFIXES, *TORCH_SUFFIXES):
        raise UserError(
            f"{path}: features are read from files that end in .npz, .npy, .safetensors, .pt or .pth"
        )
    if not path.is_file():
        raise UserError(f"there is no feature file {path}")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                arrays = {name: _as_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
                return arrays, dict(file.metadata() or {})
        if path.suffix in TORCH_SUFFIXES:
            return _read_torch(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}, {}
        with loaded:
            return _split_texts({name: loaded[name] for name in loaded.files})
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        # numpy takes bytes that it does not know for a pickle.
        if "allow_pickle" not in str(error):
            raise UserError(
                f"{path} is damaged or of another format ({str(error).splitlines()[0]})"
            ) from error
        with open(path, "rb") as file:
            start = file.read(6)
        if start.startswith((b"PK", b"\x93NUMPY")):
            raise UserError(f"{path} holds Python objects; save plain arrays of numbers") from error
        raise UserError(f"{path} is damaged or no {path.suffix} file") from error


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """:func:`_read` of what ``torch.save`` wrote: a tensor, or a dict with tensors, and lists of text, by name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's pickle; the error below says what matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    # What damaged zip or pickle data raises is not a documented set.
    except Exception as error:
        raise UserError(f"{path} is damaged, or holds more than tensors and plain values") from error
    if isinstance(content, Tensor):
        content = {"features": content}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a tensor or a dict of tensors, got {type(content).__name__}")
    dense = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, Tensor) and not value.is_sparse
    }
    texts = {
        name: json.dumps(content[name]) for name in _TEXT if isinstance(content.get(name), (list, tuple))
    }
    return {name: _as_array(value) for name, value in dense.items()}, texts


def _as_array(tensor: Tensor) -> np.ndarray:
    """Floating types that numpy lacks (bfloat16, the 8-bit ones) are taken to float32."""
    has_it = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    tensor = tensor.detach().float() if tensor.is_floating_point() and not has_it else tensor.detach()
    return tensor.resolve_conj().numpy()


def _from_json(text: str) -> Any:
    """The value; None for what another program may have put under the same name."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _split_texts(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    texts = {}
    for name in (*_TEXT, "metadata"):
        if name in arrays and arrays[name].dtype.kind == "U":
            values = arrays.pop(name).tolist()
            texts[name] = values if name == "metadata" else json.dumps(values)
    return arrays, texts


def _real_matrix(arrays: dict[str, np.ndarray], key: str | None, path: Path) -> np.ndarray:
    fitting = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiu"]
    if key is None:
        key = "features" if "features" in arrays else fitting[0] if len(fitting) == 1 else None
    if key is None or key not in arrays:
        listing = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in arrays.items())
        problem = f"no array '{key}'" if key is not None else f"{len(fitting)} arrays that may be features"
        raise UserError(f"{path} has {problem}: name one with --key; it holds {listing or 'nothing'}")
    array = arrays[key]
    if key not in fitting or 0 in array.shape:
        raise UserError(
            f"{path}: '{key}' must be real numbers [images, dimensions], got {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _numbers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UserError(
            f"{path}: '{name}' must be integers, one an image, got {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)
