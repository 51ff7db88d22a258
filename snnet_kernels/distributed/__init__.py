"""Memories and heads of several processes, made by their ``process_group`` argument; pieces of their state."""

from .rows import own_rows
from .state import rows_of_pieces, rows_of_state, whole_state

__all__ = ["own_rows", "rows_of_pieces", "rows_of_state", "whole_state"]
