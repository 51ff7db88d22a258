"""Memories and heads of several processes, made by their ``process_group`` argument; pieces of their state."""

from importlib import import_module
from typing import TYPE_CHECKING

from .rows import own_rows
from .state import rows_of_pieces, rows_of_state, whole_state

if TYPE_CHECKING:
    from .head import ShardedHead
    from .label_memory import ShardedPseudoLabelMemory
    from .memory import ShardedExemplarMemory

__all__ = [
    "ShardedExemplarMemory",
    "ShardedHead",
    "ShardedPseudoLabelMemory",
    "own_rows",
    "rows_of_pieces",
    "rows_of_state",
    "whole_state",
]

_MODULES = {
    "ShardedExemplarMemory": "memory",
    "ShardedHead": "head",
    "ShardedPseudoLabelMemory": "label_memory",
}


def __getattr__(name: str) -> object:
    """The classes are imported when they are used: that of the head imports what takes as long as torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
