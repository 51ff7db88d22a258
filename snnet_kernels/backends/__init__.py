"""What serves the operations: the compiled libraries that load, and :mod:`.table`, which says who serves what."""

from .loaded import (
    INSTRUCTION_SETS,
    BackendInfo,
    LibraryInfo,
    backend_info,
    instruction_set,
    select_instruction_set,
)
from .table import BACKENDS, servers

__all__ = [
    "BACKENDS",
    "INSTRUCTION_SETS",
    "BackendInfo",
    "LibraryInfo",
    "backend_info",
    "instruction_set",
    "select_instruction_set",
    "servers",
]
