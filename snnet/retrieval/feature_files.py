"""Features of images in a file: written whole or not at all, read from this package and from others."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from snnet.data.names import to_numbers
from snnet.errors import UserError
from snnet.files.archive import check_room
from snnet.files.arrays import BARE, ArrayType, open_arrays, write_arrays
from snnet.files.outputs import check_output, write_atomically
from snnet.files.safetensors_files import (
    MOST_HEADER_BYTES,
    SafetensorsFile,
    open_safetensors,
    write_with_checksum,
)
from snnet.files.text import Damaged, FileFault, parse_json, shown
from snnet.files.torch_files import NeedsCode
from snnet.models.weight_names import is_network
from snnet.retrieval.torch_features import NETWORK, TorchFeatures
from snnet.system.progress import say

SUFFIXES = (".npz", ".safetensors")
TORCH_SUFFIXES = (".pt", ".pth")  # read, and not written
_TEXT = ("names", "splits")
_NUMBERS = ("pids", "camids")
_MOST_ENTRY_BYTES = 2**16  # of a name or an identity as text
_OTHER_HEADER_BYTES = 2**14  # of a .safetensors file, at most: all but the names and splits of images
_LISTED = 20  # arrays that a message names
_EXACT = 2.0**53  # up to which float64 has every whole number
_BLOCK_BYTES = 2**26  # of features that are read at a time where only some of them are kept


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
    ``.safetensors`` file text is JSON in the header's metadata. Both hold checksums, which :func:`load_features`
    compares.

    Raises:
        UserError: another ending; features that are not real numbers, or not finite as float32, or that have no row or
            no column; identities or cameras that are not integers [n] of int64's range; metadata that JSON cannot hold;
            in a ``.npz``, a name or split of more than 16,384 characters; the file cannot be written.
    """
    path = Path(path)
    check_output(path, SUFFIXES)
    arrays: dict[str, Any] = {"features": _features_to_write(content.features)}
    arrays |= {
        name: _numbers_to_write(values, name)
        for name in _NUMBERS
        if (values := getattr(content, name)) is not None
    }
    # Rows one after the other, which every reader takes; torch warns of what cannot be written to.
    arrays = {name: np.require(values, None, ("C", "W")) for name, values in arrays.items()}
    texts = {name: list(values) for name in _TEXT if (values := getattr(content, name)) is not None}
    metadata = metadata_text(content.metadata)
    if path.suffix == ".npz":
        texts_as_arrays = {name: np.array(values, dtype=np.str_) for name, values in texts.items()}
        for name, values in texts_as_arrays.items():  # load_features would leave them out
            if values.itemsize > _MOST_ENTRY_BYTES:
                most, found = _MOST_ENTRY_BYTES // 4, values.itemsize // 4
                raise UserError(
                    f"{name} in a .npz must have {most:,} characters or fewer each, got {found:,}: use .safetensors"
                )

    def write(file: IO[bytes]) -> None:
        if path.suffix == ".npz":
            write_arrays(file, {**arrays, **texts_as_arrays, "metadata": metadata})
        else:
            header = {name: json.dumps(values) for name, values in texts.items()}
            header["metadata"] = metadata
            tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
            write_with_checksum(tensors, file, header)

    write_atomically(path, write)


def metadata_text(metadata: dict[str, Any]) -> str:
    """``metadata`` as JSON; raises :class:`~snnet.errors.UserError` for what JSON cannot hold."""
    try:
        return json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"metadata must be values that JSON can hold: {error}") from error


def _features_to_write(features: np.ndarray) -> np.ndarray:
    """As float32; raises where :func:`load_features` would refuse them."""
    if features.dtype.kind not in "fiu" or min(features.shape) < 1:
        raise UserError(
            f"features must be real numbers [images, dimensions], got {features.dtype} {list(features.shape)}"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        features = features.astype(np.float32, copy=False)
    if len(bad := _not_finite(features)):
        raise UserError(
            f"features must be finite as float32, {len(bad)} of {len(features)} are not, first row {bad[0]}"
        )
    return features


def _numbers_to_write(values: np.ndarray, name: str) -> np.ndarray:
    """As int64; raises where that would be other identities or cameras."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers [n], got {values.dtype} {list(values.shape)}")
    if values.max(initial=0) > np.iinfo(np.int64).max:
        raise UserError(f"{name} must fit into int64, got {values.max()}")
    return values.astype(np.int64, copy=False)


def check_header(path: Path, names: Sequence[str], splits: Sequence[str]) -> None:
    """Raise :class:`~snnet.errors.UserError` where the names and splits of images do not fit into a ``.safetensors``.

    For a command to call before its work, not after it.
    """
    size = _OTHER_HEADER_BYTES + sum(len(json.dumps(json.dumps(values))) for values in (names, splits))
    if size > MOST_HEADER_BYTES:
        raise UserError(
            f"--output {path}: the names of {len(names):,} images do not fit into the header of a .safetensors file, "
            f"which has at most {MOST_HEADER_BYTES:,} bytes: use .npz"
        )


def load_features(
    path: Path | str, key: str | None = None, *, rows: Callable[[int], range] | None = None
) -> FeatureSet:
    """Read features from a ``.npz``, ``.npy``, ``.safetensors``, ``.pt`` or ``.pth`` file, of this package or another.

    Only what is needed is read. Identities, cameras or names that cannot be read without running code are left out,
    with a warning. Checksums are compared where a file has them. Writing to the features changes no file.

    Args:
        path: the file. No file can run code: Python objects are refused. One of ``torch.save`` holds a tensor, or a
            dict with tensors by name, or one with a tensor [d] for each image, by the image's name or number.
        key: the name of the array [n, d] in a file that holds several; None: ``features``, or the only
            two-dimensional array of real numbers. A line says which, unless it is ``features``.
        rows: which consecutive images to keep, of the number that the file has; None: all of them. All are looked at,
            and of the features no more than these are held (but for a file of ``torch.save``, or an array in Fortran
            order).

    Raises:
        UserError: the file cannot be read, holds a network, no such array or several, one that does not fit into
            memory, or values that are not finite; or identities, cameras or names of another length.
    """
    path = Path(path)
    if path.suffix not in (".npy", *SUFFIXES, *TORCH_SUFFIXES):
        raise UserError(
            f"{path}: features are read from files that end in .npz, .npy, .safetensors, .pt or .pth"
        )
    if not path.is_file():
        raise UserError(f"there is no feature file {path}")
    try:
        with _open(path) as source:
            return _read(source, key, path, rows)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except NeedsCode as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values ({error.reason})"
        ) from error
    except Damaged as error:
        torchs = path.suffix in TORCH_SUFFIXES
        other = ", or holds more than tensors and plain values" if torchs else " or of another format"
        raise UserError(f"{path} is damaged{other} ({error.reason})") from error
    except FileFault as error:
        raise UserError(f"{path} {error}") from error
    except ValueError as error:  # fields that do not fit together
        raise UserError(f"{path}: {error}") from error


class _Source(Protocol):
    """An open file: the type and shape of each of its arrays, and their values."""

    types: dict[str, ArrayType]

    def read(self, name: str) -> np.ndarray: ...

    def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]: ...


def _open(path: Path) -> AbstractContextManager[_Source]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return nullcontext(TorchFeatures(path)) if path.suffix in TORCH_SUFFIXES else open_arrays(path)


def _read(
    source: _Source, key: str | None, path: Path, rows: Callable[[int], range] | None = None
) -> FeatureSet:
    key = _chosen(source.types, key, path)
    if rows is None or not source.types[key].is_plain:  # which is an error of read
        features = _as_float32(source.read(key))
        images, kept = len(features), range(len(features))
        bad = _not_finite(features)
    else:
        images = source.types[key].shape[0]
        kept = rows(images)
        features, bad = _some_rows(source, key, kept)
    if len(bad):
        raise UserError(f"{path}: {len(bad)} of {images} features are not finite, first row {bad[0]}")
    left_out: dict[str, str] = {
        name: "holds Python objects"
        for name, kind in source.types.items()
        if not kind.is_plain and name not in (*_NUMBERS, *_TEXT)
    }
    known: dict[str, Any] = {}
    for name in (*_NUMBERS, *_TEXT):
        try:
            if name in _TEXT:
                known[name] = _texts(source, name, images)
            elif name in source.types and name != key:
                known[name] = _whole_numbers(source, name, images)
        except _LeftOut as error:
            left_out[name] = str(error)
    for name, reason in left_out.items():
        warnings.warn(f"{path}: '{shown(name)}' is left out: it {reason}", stacklevel=3)
    if len(kept) < images:
        for name, values in known.items():
            if values is not None and len(values) != images:
                raise ValueError(f"{name} has {len(values)} entries for {images} features")
            known[name] = None if values is None else values[kept.start : kept.stop]
    return FeatureSet(features, **known, metadata=_metadata(source))


def _some_rows(source: _Source, key: str, kept: range) -> tuple[np.ndarray, np.ndarray]:
    """The rows ``kept`` as float32, and which rows of all are not finite."""
    kind = source.types[key]
    check_room(4 * len(kept) * kind.shape[1], "the share of its features as float32")
    features = np.empty((len(kept), kind.shape[1]), np.float32)
    bad, first = [], 0
    for block in source.blocks(key, max(1, _BLOCK_BYTES // (kind.shape[1] * kind.dtype.itemsize))):
        with np.errstate(over="ignore"):
            values = block.astype(np.float32, copy=False)
        bad.append(first + _not_finite(values))
        start, stop = max(first, kept.start), min(first + len(values), kept.stop)
        if start < stop:
            features[start - kept.start : stop - kept.start] = values[start - first : stop - first]
        first += len(values)
    return features, np.concatenate(bad)


def _chosen(types: dict[str, ArrayType], key: str | None, path: Path) -> str:
    """The name of the features, found by types and shapes alone."""
    fitting = [name for name, kind in types.items() if len(kind.shape) == 2 and kind.dtype.kind in "fiu"]
    if key is None and BARE in types:
        key = BARE
    if key is None:
        if is_network({name: kind.shape for name, kind in types.items()}):
            raise UserError(f"{path} {NETWORK}")
        key = fitting[0] if len(fitting) == 1 else None
    if key is None or key not in types:
        listing = [f"{shown(name)} {kind}" for name, kind in types.items()][:_LISTED]
        more = f" and {len(types) - _LISTED} more" if len(types) > _LISTED else ""
        problem = f"no array '{key}'" if key is not None else f"{len(fitting)} arrays that may be features"
        raise UserError(
            f"{path} has {problem}: name one with --key; it holds {', '.join(listing) or 'nothing'}{more}"
        )
    kind = types[key]
    if kind.is_plain and (key not in fitting or min(kind.shape) < 1):
        raise UserError(f"{path}: '{key}' must be real numbers [images, dimensions], got {_swapped(kind)}")
    if key != BARE:
        say(f"features of {path}: '{shown(key)}' {kind}")
    return key


def _swapped(kind: ArrayType) -> str:
    return f"{shown(str(kind.dtype))} {shown(list(kind.shape))}"


def _as_float32(array: np.ndarray) -> np.ndarray:
    """The same values in rows one after the other, which may be written to: the array itself where it is so."""
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        check_room(4 * array.size, "its features as float32")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is an error of its own
        return np.require(array, np.float32, ("C", "W"))


def _not_finite(features: np.ndarray) -> np.ndarray:
    """Which rows have a number that is not finite, without a truth value of each number."""
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(~np.isfinite(features.min(axis=1)) | ~np.isfinite(features.max(axis=1)))


class _LeftOut(Exception):
    """Why an optional field is not used; the message continues a sentence that begins with "it"."""


def _column(source: _Source, name: str, images: int) -> np.ndarray:
    """An array with one entry an image, [n] or [n, 1]; one of another length or of huge entries is not read."""
    kind = source.types[name]
    if not kind.is_plain:
        raise _LeftOut("holds Python objects")
    if len(kind.shape) != 1 and kind.shape[1:] != (1,):
        raise _LeftOut(f"must have one entry an image, got {_swapped(kind)}")
    if kind.shape[0] != images:
        raise ValueError(f"{name} has {kind.shape[0]} entries for {images} features")
    if kind.dtype.itemsize > _MOST_ENTRY_BYTES:
        raise _LeftOut(f"has entries of {kind.dtype.itemsize} bytes, {_MOST_ENTRY_BYTES} at most are read")
    return source.read(name).reshape(-1)


def _whole_numbers(source: _Source, name: str, images: int) -> np.ndarray:
    """Identities or cameras, int64 [n], of integers, other whole numbers or text; text that is no number is counted."""
    values = _column(source, name, images)
    kind: str = values.dtype.kind
    if kind == "S":
        try:
            values, kind = np.char.decode(values, "utf-8"), "U"
        except UnicodeDecodeError:
            kind = "bytes"
    if kind == "U":
        return to_numbers([values.tolist()], identities=name == "pids")[0]
    if kind in "iu" and values.max(initial=0) <= np.iinfo(np.int64).max:
        return values.astype(np.int64)
    if kind == "f" and bool((np.isfinite(values) & (np.abs(values) < _EXACT) & (values % 1 == 0)).all()):
        return values.astype(np.int64)
    raise _LeftOut(f"must be whole numbers or text, got {_swapped(source.types[name])}")


def _texts(source: _Source, name: str, images: int) -> tuple[str, ...] | None:
    """Names or splits, where the file has them as text."""
    if isinstance(source, SafetensorsFile):
        values = _from_json(source.metadata.get(name, "null"))
        return tuple(map(str, values)) if isinstance(values, list) else None
    if isinstance(source, TorchFeatures):
        values = source.content.get(name)
        if not isinstance(values, (list, tuple)):
            return None
        if not all(isinstance(value, str) for value in values):
            raise _LeftOut("must be text, one an image")
        return tuple(values)
    if name not in source.types or (
        source.types[name].is_plain and source.types[name].dtype.kind not in "US"
    ):
        return None
    values = _column(source, name, images)
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError:
            raise _LeftOut("must be text, got bytes that are not UTF-8") from None
    return tuple(values.tolist())


def _metadata(source: _Source) -> dict[str, Any]:
    """How the features were made, where the file says it as this package does."""
    text: Any = None
    if isinstance(source, SafetensorsFile):
        text = source.metadata.get("metadata")
    elif not isinstance(source, TorchFeatures):
        kind = source.types.get("metadata")
        if kind is not None and kind.dtype.kind == "U" and kind.shape == ():
            text = source.read("metadata").item()
    found = None if text is None else _from_json(text)
    return found if isinstance(found, dict) else {}


def _from_json(text: str) -> Any:
    """The value; None for what another program may have put under the same name."""
    try:
        return parse_json(text)
    except FileFault:
        return None
