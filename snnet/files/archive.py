"""Zip archives, which torch.save and numpy.savez write: their structure, and the CRC-32 of each member."""

from __future__ import annotations

import zipfile
from typing import IO

import torch

from snnet.files.text import Damaged, FileFault, shown
from snnet_kernels.memory_size import free_memory

_CHUNK = 1 << 20


def open_archive(file: IO[bytes]) -> zipfile.ZipFile:
    """The zip archive that ``file`` is, from its first byte on; raises :class:`Damaged` otherwise."""
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # damaged headers raise nearly anything
        raise damaged(error) from error
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise Damaged("two members of its archive have one name")
    # A table of contents that lost its first entries still opens; writers leave nothing before the first member.
    if members and min(member.header_offset for member in members) != 0:
        raise Damaged("its archive does not begin where the file does")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise Damaged("its archive is packed in an unknown way")
    return archive


def verify(archive: zipfile.ZipFile) -> None:
    """Raise :class:`Damaged` unless each member's content has the CRC-32 that was written with it."""
    for member in archive.infolist():
        try:
            with archive.open(member) as content:
                while content.read(_CHUNK):
                    pass
        except Exception as error:
            raise damaged(error) from error


def member_checksums(archive: zipfile.ZipFile, without: str) -> dict[str, int]:
    """The CRC-32 that was written with each member, by its name; without the member ``without``, which lists them."""
    return {member.filename: member.CRC for member in archive.infolist() if member.filename != without}


def check_room(size: int, what: str) -> None:
    """Raise :class:`FileFault` where ``size`` bytes are more than the memory that is free."""
    free = free_memory(torch.device("cpu"))
    if size > free:
        raise FileFault(
            f"is not read: {what} takes {size / 2**30:,.1f} GiB of the {free / 2**30:,.1f} that are free"
        )


def damaged(error: Exception) -> Damaged:
    """The fault of a file in which reading failed with ``error``."""
    return Damaged(shown(" ".join(f"{type(error).__name__}: {error}".split()), 200))
