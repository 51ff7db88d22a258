"""Rank metrics as they are written down and as a table."""

from __future__ import annotations

from typing import Any

from snnet.retrieval.rank_metrics import RankMetrics
from snnet.training.runlog import RANKS


def rank_record(metrics: RankMetrics) -> dict[str, Any]:
    """The numbers of ``metrics`` that are written down; qualities are fractions from 0 to 1."""
    return {
        **{name: float(getattr(metrics, name)) for name in RANKS},
        "queries": metrics.num_queries,
        "queries_without_match": metrics.num_without_match,
        "average_precision": metrics.average_precision,
        **({"single_gallery_shot": True} if metrics.single_gallery_shot else {}),
    }


def rank_table(rows: dict[str, dict[str, Any]]) -> str:
    """Named :func:`rank_record` results as lines of percentages."""
    width = max(10, *(len(name) + 2 for name in rows))
    lines = [" " * width + "".join(f"{name:>9}" for name in RANKS)]
    lines += [
        f"{name:<{width}}" + "".join(f"{100 * row[r]:>9.2f}" for r in RANKS) for name, row in rows.items()
    ]
    last = list(rows.values())[-1]
    note = f"{last['queries']} queries, mAP by {last['average_precision']}"
    if last.get("single_gallery_shot"):
        note += ", CMC of galleries with one image an identity"
    if last["queries_without_match"]:
        note += f"; {last['queries_without_match']} more have no match in the gallery and do not count"
    return "\n".join([*lines, f"({note}; in percent)"])
