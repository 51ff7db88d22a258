"""Memories and heads of several processes, made by their ``process_group`` argument; pieces of their state."""

from .head import ShardedHead
from .label_memory import ShardedPseudoLabelMemory
from .memory import ShardedExemplarMemory
from .rows import own_rows
from .state import rows_of_pieces, rows_of_state, whole_state

__all__ = [
    "ShardedExemplarMemory",
    "ShardedHead",
    "ShardedPseudoLabelMemory",
    "own_rows",
    "rows_of_pieces",
    "rows_of_state",
    "whole_state",
]
