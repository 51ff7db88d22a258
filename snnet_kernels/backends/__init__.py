"""Backends: loading of the compiled libraries, and :mod:`.table`, which lists the backends of every operation."""

from .loaded import (
    INSTRUCTION_SETS,
    BackendInfo,
    LibraryInfo,
    backend_info,
    instruction_set,
    select_instruction_set,
    servers_on,
)
from .table import BACKENDS

__all__ = [
    "BACKENDS",
    "INSTRUCTION_SETS",
    "BackendInfo",
    "LibraryInfo",
    "backend_info",
    "instruction_set",
    "select_instruction_set",
    "servers_on",
]
