"""Checks of metrics that are read back: those of an epoch, and rank metrics."""

from __future__ import annotations

import math
from typing import Any, get_args

from snnet.config.options import AveragePrecision
from snnet.files.text import quoted, shown
from snnet.training.runlog import RANKS

LARGEST = 3.5e38  # of any number that a run measures: the loss can be anything that float32 holds
# How the names of values from 0 to 1 begin.
FRACTIONS = ("rank", "mAP", "mINP", "reranked_", "label_", "agreement_")
_COUNTS = ("queries", "queries_without_match")


def check_record(record: Any, epoch: int) -> list[str]:
    """Check the metrics of an epoch; returns the names of those that are not finite.

    Raises ValueError unless they are numbers that can have been measured, with a loss and all ranks of a ranking.
    """
    if not isinstance(record, dict):
        raise ValueError(f"they must be an object, got {quoted(record)}")
    if _number(record, "epoch") != epoch:
        raise ValueError(f"epoch must be {epoch}, got {quoted(record['epoch'])}")
    for name in record:
        if not isinstance(name, str):
            raise ValueError(f"a name must be text, got {quoted(name)}")
    needed = ["loss", "seconds"]
    for ranks in (RANKS, [f"reranked_{name}" for name in RANKS]):
        needed += ranks if any(name in record for name in ranks) else ()
    floats = {name: value for name, value in record.items() if isinstance(value, float)}
    lost = [name for name, value in floats.items() if name != "seconds" and not math.isfinite(value)]
    for name in (*needed, *record):
        if name not in lost:
            _number(record, name)
    return lost


def checked_ranks(found: Any) -> dict[str, Any]:
    """Rank metrics as :func:`snnet.retrieval.rank_tables.rank_record` makes them, without what else may be there.

    Empty if there are none. Raises ValueError for anything else.
    """
    if not found:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"they must be an object, got {quoted(found)}")
    numbers = {name: _number(found, name) for name in (*RANKS, *_COUNTS)}
    definition, definitions = found.get("average_precision"), get_args(AveragePrecision)
    if definition not in definitions:
        raise ValueError(f"average_precision must be {' or '.join(definitions)}, got {quoted(definition)}")
    shot = {"single_gallery_shot": True} if found.get("single_gallery_shot") is True else {}
    return {**numbers, "average_precision": definition, **shot}


def _number(values: dict[Any, Any], name: str) -> float:
    """A number of a record, if it is one that can have been measured."""
    if name not in values:
        raise ValueError(f"{name} is missing")
    value = values[name]
    count, fraction = name in _COUNTS, name.startswith(FRACTIONS)
    low = 0 if fraction or count or name.startswith("seconds") else -LARGEST
    high = 1 if fraction else LARGEST
    of_kind = isinstance(value, int if count else (int, float)) and not isinstance(value, bool)
    if not of_kind or not low <= value <= high + 1e-6:  # means in float32 may be a little above 1
        kind = "whole number" if count else "number"
        raise ValueError(f"{shown(name)} must be a {kind} from {low:g} to {high:g}, got {quoted(value)}")
    return value
