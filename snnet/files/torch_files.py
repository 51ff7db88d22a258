"""Files of ``torch.save``, read without running code and without taking more memory than they have bytes.

A file of this package has one more member, ``checksums``. It lists the members and the CRC-32 of each, so that one that
is gone, or stands under another's name, is noticed. Other files are read without it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from snnet.files.archive import check_room, damaged, member_checksums, open_archive, verify
from snnet.files.pickle_scan import scan_pickle
from snnet.files.text import Damaged, FileFault, shown

CHECKSUMS = "archive/checksums"  # the member that names all others; torch.load leaves it alone
_LEGACY_PICKLES = 5  # pickles that begin a file of torch.save from before its zip archives


class NeedsCode(FileFault):
    """The file asks for more than tensors and plain values: for the code called ``name``, where it names any."""

    def __init__(self, name: str | None, reason: str) -> None:
        super().__init__(f"holds more than tensors and plain values ({reason})")
        self.name = name
        self.reason = reason


def read_torch(path: Path, stand_ins: Sequence[Any] = ()) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU.

    A zip archive, as it has been since torch 1.6, has the CRC-32 of each of its members checked first.

    Args:
        path: the file.
        stand_ins: pairs of a class and a name, as ``torch.serialization.safe_globals`` takes them: the class is put
            in place of what has that name.

    Raises:
        OSError: the file cannot be read.
        FileFault: it is damaged, larger than the memory that is free, or made to take more.
        NeedsCode: it holds more than tensors and plain values.
    """
    with open(path, "rb") as file:
        _check(file)
        file.seek(0)
        try:
            with torch.serialization.safe_globals(list(stand_ins)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a foreign file's pickle; the error says what matters
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # Behind these words torch says what stopped it; before them it advises how to allow code.
            words = str(error).partition("WeightsUnpickler error:")[2] or str(error)
            name = re.search(r"GLOBAL ([\w.]+)", words)
            raise NeedsCode(shown(name[1]) if name else None, damaged(type(error)(words)).reason) from error
        except Exception as error:  # what damaged data raises is not a documented set
            raise damaged(error) from error


def write_torch(value: Any, file: IO[bytes]) -> None:
    """Write ``value`` by ``torch.save``, and checksums, to a file that can be read too. Raises OSError."""
    try:
        torch.save(value, file)
    except RuntimeError as error:  # torch's zip writer reports a full disk in its own words
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise OSError(f"the file could not be completed ({str(error).splitlines()[0]})") from error
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(CHECKSUMS, json.dumps(member_checksums(archive, without=CHECKSUMS)))


def tensor_fault(value: Any) -> str | None:
    """Why ``value`` is no tensor whose values can be used as they are; None where it is one."""
    if not isinstance(value, Tensor):
        return f"no tensor but a {type(value).__name__}"
    if (
        type(value) not in (Tensor, torch.nn.Parameter)
        or value.layout != torch.strided
        or value.is_meta
        or value.is_quantized
        or value.is_nested
    ):
        return "no plain dense tensor"
    taken, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if taken > held:  # one number can be spread over any shape
        return (
            f"{shown(list(value.shape))} {value.dtype} of {taken:,} bytes, of which the file holds {held:,}"
        )
    return None


def _check(file: IO[bytes]) -> None:
    """All that can be known before anything is built."""
    is_archive = file.read(2) == b"PK"
    file.seek(0)
    if is_archive:
        archive = open_archive(file)
        check_room(sum(member.file_size for member in archive.infolist()), "its content")
        verify(archive)
        _compare_checksums(archive)
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as content:
                    _scan(content)
        return
    size = os.fstat(file.fileno()).st_size
    for _ in range(_LEGACY_PICKLES):
        if file.tell() == size or not _scan(file):
            return


def _compare_checksums(archive: zipfile.ZipFile) -> None:
    if CHECKSUMS not in archive.namelist():
        return
    written = json.dumps(member_checksums(archive, without=CHECKSUMS)).encode()
    with archive.open(CHECKSUMS) as content:
        if content.read(len(written) + 1) != written:
            raise Damaged("its members are not those that were written")


def _scan(file: IO[bytes]) -> bool:
    try:
        return scan_pickle(file)
    except FileFault:
        raise
    except Exception as error:
        raise damaged(error) from error
