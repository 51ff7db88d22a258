"""Pieces of a head's state: what R processes have saved, for any other number of processes, or for one.

A piece is the ``state_dict()`` of a head with a ``process_group``: ``_momentum``, the own rows of M
(``memory.features``) and of its lists where they are built (``memory.lists.*``), and the own columns of P
(``pseudo_labels.column_entries``, ``pseudo_labels.column_counts``). ``memory.rows`` and ``pseudo_labels.rows``, int64
[2], are the first own row and n. Pieces are given in order of the ranks. They must be of the same step, which nothing
checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_labels
from ..label_tables import LabelTables
from ..layout import label_entries
from ..memory_lists import list_checksums
from ..neighbor_list_layout import NeighborLists, with_mirrors
from .lists import ShardedLists

FEATURES, LISTS, LABELS = "memory.features", "memory.lists.", "pseudo_labels."
ENTRIES, COUNTS = LABELS + "column_entries", LABELS + "column_counts"
ROWS = ("memory.rows", LABELS + "rows")
BY_ROW = ("columns", "values", "counts", "floors", "checksums")


def rows_of_pieces(pieces: Sequence[Mapping[str, Tensor]], rows: range) -> dict[str, Tensor]:
    """The piece of the process that owns ``rows``, of the pieces of any number of processes.

    Tensors of the pieces may be memory-mapped: only what is needed of them is read. Raises ValueError where a piece is
    missing, or not at its place.
    """
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece[FEATURES]))
    for number, (piece, start) in enumerate(zip(pieces, starts[:-1], strict=True)):
        for name in ROWS:
            if name in piece and (told := piece[name].tolist()) != [start, starts[-1]]:
                raise ValueError(
                    f"pieces must be those of all ranks, in order: {name} of piece {number} must be "
                    f"{[start, starts[-1]]}, got {told}"
                )
    if rows.stop > starts[-1]:
        raise ValueError(f"rows must lie in the {starts[-1]} rows of the pieces, got {rows}")
    parts = [
        (piece, max(rows.start, start) - start, min(rows.stop, stop) - start)
        for piece, start, stop in zip(pieces, starts[:-1], starts[1:], strict=True)
        if max(rows.start, start) < min(rows.stop, stop)
    ] or [(pieces[0], 0, 0)]
    found = {FEATURES: torch.cat([piece[FEATURES][first:last] for piece, first, last in parts])}
    if all(LISTS + "columns" in piece for piece in pieces):
        for name in BY_ROW:
            found[LISTS + name] = torch.cat([piece[LISTS + name][first:last] for piece, first, last in parts])
        found[LISTS + "products"] = pieces[0][LISTS + "products"].clone()
    entries = []
    for piece, first, last in parts:
        ends = torch.nn.functional.pad(piece[COUNTS].long().cumsum(0), (1, 0))
        entries.append(piece[ENTRIES][ends[first] : ends[last]])
    found[ENTRIES] = torch.cat(entries)
    found[COUNTS] = torch.cat([piece[COUNTS][first:last] for piece, first, last in parts])
    return found | _told(rows, starts[-1], found[FEATURES].device) | _rest(pieces[0])


def whole_state(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of a head of one process. Lists that are damaged are left out: they are made afresh.

    Raises ValueError where a piece is missing, or not at its place.
    """
    n = sum(len(piece[FEATURES]) for piece in pieces)
    found = rows_of_pieces(pieces, range(n))
    for name in ROWS:
        del found[name]
    entries, counts = found.pop(ENTRIES), found.pop(COUNTS)
    tables = LabelTables(n, entries.device)
    tables.load_(entries, counts, side="column")
    found[LABELS + "row_entries"], found[LABELS + "row_counts"] = tables.saved("row")
    lists = {name: found.pop(LISTS + name) for name in ShardedLists.saved_names() if LISTS + name in found}
    if not lists:
        return found
    made, features = (
        NeighborLists(*(lists[name] for name in NeighborLists._fields if name in lists)),
        found[FEATURES],
    )
    if not torch.equal(list_checksums(features, made), lists["checksums"]):
        return found
    made = with_mirrors(made)
    lists |= made._asdict() | {"checksums": list_checksums(features, made)}
    return found | {LISTS + name: tensor for name, tensor in lists.items()}


def rows_of_state(state: Mapping[str, Tensor], rows: range) -> dict[str, Tensor]:
    """The piece of the process that owns ``rows``, of the state of a head of one process."""
    own = slice(rows.start, rows.stop)
    features = state[FEATURES][own].clone()
    n = len(state[FEATURES])
    found = {FEATURES: features}
    if LABELS + "row_bits" in state:
        row, column = label_entries(check_labels("row_bits", state[LABELS + "row_bits"], n, n), n)
    else:
        whole = LabelTables(n, features.device)
        whole.load_(state[LABELS + "row_entries"], state[LABELS + "row_counts"])
        row, column = whole.pairs(0, n)
    mine = (column >= rows.start) & (column < rows.stop)
    tables = LabelTables(n, features.device, own=rows)
    tables.take_(row[mine], column[mine] - rows.start)
    found[ENTRIES], found[COUNTS] = tables.saved("column")
    if LISTS + "columns" in state:
        made = NeighborLists(*(state[LISTS + name][own] for name in NeighborLists._fields))
        if torch.equal(list_checksums(features, made), state[LISTS + "checksums"][own]):
            made = made._replace(mirrors=None)
            lists = {name: tensor.clone() for name, tensor in made._asdict().items() if tensor is not None}
            lists |= {
                "products": state[LISTS + "products"].clone(),
                "checksums": list_checksums(features, made),
            }
            found |= {LISTS + name: tensor for name, tensor in lists.items()}
    return found | _told(rows, n, features.device) | _rest(state)


def _told(rows: range, n: int, device: torch.device) -> dict[str, Tensor]:
    """What a piece says of its ``rows``."""
    return {name: torch.tensor([rows.start, n], device=device) for name in ROWS}


def _rest(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What all processes have alike."""
    return {
        name: tensor.clone() for name, tensor in state.items() if not name.startswith(("memory.", LABELS))
    }
