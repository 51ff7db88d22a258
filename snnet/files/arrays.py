"""Arrays in ``.npz`` and ``.npy`` files: types and shapes first, then only those that are asked for.

A ``.npz`` of this package has one more array, ``checksums``. It lists the arrays and the CRC-32 of each, so that one
that is gone, or stands under another's name, is noticed.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from snnet.files.archive import check_room, damaged, member_checksums, open_archive
from snnet.files.text import Damaged, FileFault, shown

CHECKSUMS = "checksums"  # the array that names all others
BARE = "features"  # how the one array of a .npy file is called
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class ArrayType:
    """What a header says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_plain(self) -> bool:
        """Whether it can be read without running code."""
        return not self.dtype.hasobject

    def __str__(self) -> str:
        return f"{shown(list(self.shape))} {shown(str(self.dtype))}"


class ArrayFile:
    """The arrays of an open file. ``types`` has every name; a name's values are read by :meth:`read`."""

    def __init__(self, file: IO[bytes], is_archive: bool) -> None:
        self._file = file
        self._archive = open_archive(file) if is_archive else None
        names = [BARE]
        if self._archive is not None:
            members = self._archive.namelist()
            if not all(member.endswith(".npy") for member in members):
                raise Damaged("a member of its archive is no .npy")
            names = [member.removesuffix(".npy") for member in members]
        self.types: dict[str, ArrayType] = {}
        for name in names:
            with self._open(name) as (content, _):
                self.types[name] = _read_header(content)
        if self._archive is not None and CHECKSUMS in self.types:
            self._compare_checksums(self._archive)

    def _compare_checksums(self, archive: zipfile.ZipFile) -> None:
        kind = self.types[CHECKSUMS]
        if kind.shape != () or kind.dtype.kind != "U":
            raise FileFault(
                f"has an array '{CHECKSUMS}' {kind} in the place of the text that lists its arrays: it is damaged, or "
                "another program's, whose array needs another name"
            )
        text = self.read(CHECKSUMS).item()
        del self.types[CHECKSUMS]
        if text != _checksums(archive):
            raise Damaged("its arrays are not those that were written")

    def read(self, name: str) -> np.ndarray:
        """The values, whose CRC-32 has been checked in a ``.npz``. Raises :class:`FileFault`."""
        kind = self.types[name]
        if not kind.is_plain:
            raise FileFault(f"holds Python objects in '{shown(name)}'; save plain arrays of numbers")
        check_room(self._size(name), f"'{shown(name)}' {kind}")
        # Opened again: zipfile does not check the CRC-32 of a member after seek() went back.
        with self._open(name) as (content, _):
            try:
                values = np.lib.format.read_array(content, allow_pickle=False)
                content.read(1)  # at the end of a member its CRC-32 is compared
            except MemoryError as error:
                raise FileFault(f"is not read: '{shown(name)}' {kind} does not fit into memory") from error
            except Exception as error:
                raise damaged(error) from error
        return values

    def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        """The same, ``rows`` rows at a time, so that no more are held; an array in Fortran order is one block."""
        kind = self.types[name]
        with self._open(name) as (content, _):
            by_columns = _layout(content)[1]
        if by_columns or not kind.is_plain:
            yield self.read(name)
            return
        self._size(name)
        row = math.prod(kind.shape[1:]) * kind.dtype.itemsize
        with self._open(name) as (content, _):
            _read_header(content)
            for first in range(0, kind.shape[0], rows):
                count = min(rows, kind.shape[0] - first)
                try:
                    block = content.read(count * row)
                    if first + count == kind.shape[0]:
                        content.read(1)  # at the end of a member its CRC-32 is compared
                    values = np.frombuffer(block, kind.dtype).reshape(count, *kind.shape[1:])
                except Exception as error:
                    raise damaged(error) from error
                yield values

    def _size(self, name: str) -> int:
        """Bytes of an array's values, as its header says and as there are."""
        kind = self.types[name]
        with self._open(name) as (content, size):
            _read_header(content)
            wanted = math.prod(kind.shape) * kind.dtype.itemsize
            if min(kind.shape, default=0) < 0 or content.tell() + wanted != size:
                raise Damaged(f"'{shown(name)}' is said to be {kind}, which is not what there is")
        return wanted

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """The bytes of an array, and how many there are."""
        if self._archive is None:
            self._file.seek(0)
            yield self._file, os.fstat(self._file.fileno()).st_size
            return
        try:
            member = self._archive.getinfo(f"{name}.npy")
            content = self._archive.open(member)
        except Exception as error:
            raise damaged(error) from error
        with content:
            yield content, member.file_size


def write_arrays(file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """Write ``arrays`` as :func:`numpy.savez` does, and their checksums."""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, values in arrays.items():
            _write_array(archive, name, values)
        _write_array(archive, CHECKSUMS, _checksums(archive))


def _write_array(archive: zipfile.ZipFile, name: str, values: Any) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)


def _checksums(archive: zipfile.ZipFile) -> str:
    """Name and CRC-32 of every array but this one, as JSON."""
    members = member_checksums(archive, without=f"{CHECKSUMS}.npy")
    return json.dumps({name.removesuffix(".npy"): checksum for name, checksum in members.items()})


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """The arrays of a ``.npz`` or ``.npy`` file, told apart by how it begins. Raises OSError and :class:`FileFault`."""
    with open(path, "rb") as file:
        start = file.read(6)
        file.seek(0)
        if not start.startswith((b"PK", b"\x93NUMPY")):
            raise FileFault(f"is damaged or no {path.suffix} file")
        yield ArrayFile(file, start.startswith(b"PK"))


def _read_header(content: IO[bytes]) -> ArrayType:
    shape, _, dtype = _layout(content)
    return ArrayType(shape, dtype)


def _layout(content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns stand one after the other (Fortran order), and type."""
    try:
        version = np.lib.format.read_magic(content)
        if version not in _HEADERS:  # of records whose fields have odd names
            return (), False, np.dtype(object)
        return _HEADERS[version](content)
    except Exception as error:
        raise damaged(error) from error
