"""``.safetensors`` files with a checksum, which the format does not have by itself.

The file's metadata hold ``crc32``: that of the header without this entry (as JSON, its keys sorted, no spaces) and of
all data behind it, as eight hexadecimal digits. Other programs read such files as any; files without it are read
unchecked.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from snnet.files.archive import check_room, damaged
from snnet.files.arrays import ArrayType
from snnet.files.text import Damaged, shown

CHECKSUM = "crc32"
MOST_HEADER_BYTES = 100_000_000  # safetensors reads no longer header
_METADATA = "__metadata__"
_CHUNK = 1 << 20
_TYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "float32", "F8_E4M3": "float32",
    "F8_E5M2": "float32", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_CODES = {  # of the types that are written
    torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.int8: "I8",
    torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_with_checksum(
    tensors: Mapping[str, Tensor], file: IO[bytes], metadata: Mapping[str, str] | None = None
) -> str:
    """Write ``tensors`` as ``safetensors`` does, with ``metadata`` and their checksum, which is returned.

    ``safetensors`` itself would hold all of them twice more. Here one is copied at a time, and only if it is on a GPU
    or its values do not stand one after the other. Raises OSError where the header would be longer than any that is
    read.
    """
    # The larger types first: so each tensor begins at a multiple of its type's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header[_METADATA] = dict(metadata or {})
    number = _start(header)
    for name in names:
        number = zlib.crc32(_bytes(tensors[name]), number)
    header[_METADATA][CHECKSUM] = checksum = f"{number:08x}"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    if len(text) > MOST_HEADER_BYTES:
        raise OSError(f"a header of .safetensors has at most {MOST_HEADER_BYTES:,} bytes, got {len(text):,}")
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(_bytes(tensors[name]))
    return checksum


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class SafetensorsFile:
    """The tensors of an open file: ``types`` by name, values by :meth:`read` and :meth:`tensor`; ``metadata``."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.metadata: dict[str, str] = dict(file.metadata() or {})
        self.types: dict[str, ArrayType] = {}
        for name in file.keys():  # noqa: SIM118
            view = file.get_slice(name)
            self.types[name] = ArrayType(
                tuple(view.get_shape()), np.dtype(_TYPES.get(view.get_dtype(), object))
            )

    def tensor(self, name: str) -> Tensor:
        kind = self.types[name]
        check_room(
            int(np.prod(kind.shape, dtype=np.float64)) * kind.dtype.itemsize, f"'{shown(name)}' {kind}"
        )
        try:
            return self._file.get_tensor(name)
        except Exception as error:
            raise damaged(error) from error

    def read(self, name: str) -> np.ndarray:
        """The values; floating types that numpy lacks are taken to float32."""
        return as_array(self.tensor(name))

    def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        """The same, ``rows`` rows at a time, so that no more are held."""
        for first in range(0, self.types[name].shape[0], rows):
            try:
                block = self._file.get_slice(name)[first : first + rows]
            except Exception as error:
                raise damaged(error) from error
            yield as_array(block)


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsFile]:
    """The tensors of a file, its checksum compared where it has one. Raises OSError and :class:`FileFault`."""
    with open(path, "rb") as content:
        # safetensors takes only names that are UTF-8.
        name = path if _is_utf8(path) else f"/dev/fd/{content.fileno()}"
        try:
            opened = safetensors.safe_open(name, framework="pt")
        except OSError:
            raise
        except Exception as error:
            raise damaged(error) from error
        with opened as file:
            found = SafetensorsFile(file)
            if CHECKSUM in found.metadata and found.metadata[CHECKSUM] != f"{_checksum(content):08x}":
                raise Damaged("its content has another checksum than was written with it")
            yield found


def _is_utf8(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor as numpy has it; floating types that numpy lacks (bfloat16, the 8-bit ones) as float32."""
    has_it = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    tensor = tensor.detach().float() if tensor.is_floating_point() and not has_it else tensor.detach()
    return tensor.resolve_conj().numpy()


def _checksum(file: IO[bytes]) -> int:
    length = int.from_bytes(file.read(8), "little")
    try:
        checksum = _start(json.loads(file.read(length)))
    except Exception as error:
        raise damaged(error) from error
    while chunk := file.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _start(header: dict[str, Any]) -> int:
    """The checksum of the header, from which that of the data goes on."""
    metadata = {name: value for name, value in header.get(_METADATA, {}).items() if name != CHECKSUM}
    text = json.dumps({**header, _METADATA: metadata}, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())
