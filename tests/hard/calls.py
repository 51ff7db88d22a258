"""Every public operation as a call by name: its arguments, and the same from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk
from snnet_kernels import ops, reference
from snnet_kernels.neighbor_list_layout import are_symmetric
from tests.hard.drawing import MIN_RANKS, MOMENTA, THRESHOLDS, Arguments, draw_lists, listed

Random = np.random.Generator
Named = dict[str, Any]
TO_FLOAT = ("features", "similarity", "query_rows")  # taken from any floating type


@dataclass(frozen=True)
class Call:
    """One operation: ``public`` takes the arguments by name, ``plain`` computes the same from the reference."""

    public: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: Callable[[Random, Arguments], Named]
    written: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def results(function: Callable[..., Any], given: Named, written: tuple[str, ...]) -> list[Tensor]:
    """What ``function`` returns, as a list, and after it the arguments that it writes.

    Of lists that it writes only whether they agree with themselves: rounding decides what is at a floor.
    """
    returned = function(**given)
    found = [] if returned is None else [returned] if isinstance(returned, Tensor) else list(returned)
    changed = [given[name] for name in written if given.get(name) is not None]
    return [value for value in found if isinstance(value, Tensor)] + [
        torch.tensor(are_symmetric(value)) if isinstance(value, tuple) else value for value in changed
    ]


def copies(given: Named) -> Named:
    """Plain copies of all arguments: dense, contiguous, apart from each other, features in float32."""
    return {name: _copied(name, value) for name, value in given.items()}


def _copied(name: str, value: Any) -> Any:
    if isinstance(value, sk.NeighborLists):
        return sk.NeighborLists(*(_copied(name, table) for table in value))
    if isinstance(value, Tensor):
        plain = value.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
        return plain.float() if name in TO_FLOAT else plain
    if isinstance(value, (list, tuple)) and name == "labels":
        return [_copied(name, one) for one in value]
    if name in ("threshold", "floor", "delta", "hard_negative_ratio") and value is not None:
        return float(value)
    return value


def _inquiry(random: Random, x: Arguments) -> Named:
    return {
        "memory": x.memory,
        "index": x.index,
        "threshold": THRESHOLDS[random.integers(len(THRESHOLDS))],
        "min_rank": MIN_RANKS[random.integers(len(MIN_RANKS))],
        "lists": draw_lists(random, x.memory, bool(random.integers(2))) if random.integers(2) else None,
        "query_rows": x.similarity if random.integers(2) else None,
    }


def _loss(random: Random, x: Arguments) -> Named:
    count = int(random.integers(1, 4))
    return {
        "labels": list(x.labels[:count]),
        "weights": [0.5, 1.0, 0.25][:count],
        "kind": ("mmcl", "l2")[random.integers(2)],
        "delta": 5.0,
        "hard_negative_ratio": 0.05,
    }


def _update(random: Random, x: Arguments) -> Named:
    return {
        "memory": x.memory.clone(),
        "index": x.index,
        "features": x.features,
        "momentum": MOMENTA[random.integers(len(MOMENTA))],
        "lists": draw_lists(random, x.memory, symmetric=True) if random.integers(2) else None,
        "similarity": x.similarity if random.integers(2) else None,
    }


def _neighbors(random: Random, x: Arguments) -> Named:
    inquiry = _inquiry(random, x)
    return {"k": int(random.integers(1, 6))} | {
        name: inquiry[name] for name in ("memory", "index", "lists", "query_rows")
    }


def _bits(x: Arguments) -> Named:
    return {"row_bits": x.row_bits.clone(), "column_bits": x.column_bits.clone()}


def _labels(lists: sk.NeighborLists | None, **given: Any) -> Tensor:
    """Labels are the same with lists and without."""
    return reference.mplp(**given)


def _nearest(lists: sk.NeighborLists | None, **given: Any) -> tuple[Tensor, Tensor]:
    return reference.nearest_neighbors(**given)


def _listed(features: Tensor, k: int, floor: float | None, symmetric: bool) -> list[Tensor]:
    made = listed(features.float(), int(k), -torch.inf if floor is None else float(floor), bool(symmetric))
    return [table for table in made if table is not None]


def _updated(lists: sk.NeighborLists | None, similarity: Tensor | None, **given: Any) -> None:
    if lists is None:
        reference.update_memory_(**given)
    else:
        reference.update_memory_lists_(**given, lists=lists, similarity=similarity)


def _fused_loss(**given: Any) -> Tensor:
    """The reference makes the similarity anew; where one is given, it counts."""
    similarity = given.pop("similarity")
    if similarity is None:
        return reference.fused_mutual_label_loss(**given)
    del given["features"], given["memory"]
    return reference.mutual_label_loss(similarity, **given)


def _write(**given: Any) -> None:
    reference.write_labels_(given["row_bits"], given["column_bits"], given["index"], given["labels"])


CALLS: dict[str, Call] = {
    "pack_labels": Call(
        sk.pack_labels,
        reference.pack_labels,
        lambda random, x: {"labels": reference.unpack_labels(x.row_bits, x.memory.shape[0])},
    ),
    "unpack_labels": Call(
        sk.unpack_labels,
        reference.unpack_labels,
        lambda random, x: {"labels": x.row_bits, "n": x.memory.shape[0]},
    ),
    "gather_labels": Call(
        ops.gather_labels,
        reference.gather_labels,
        lambda random, x: {"bits": x.row_bits, "index": x.index},
    ),
    "write_labels_": Call(
        ops.write_labels_,
        _write,
        lambda random, x: {**_bits(x), "index": x.index, "labels": x.labels[0]},
        written=("row_bits", "column_bits"),
    ),
    "memory_similarity": Call(
        sk.memory_similarity,
        reference.memory_similarity,
        lambda random, x: {"features": x.features, "memory": x.memory},
    ),
    "neighbor_lists": Call(
        sk.neighbor_lists,
        _listed,
        lambda random, x: {
            "features": x.memory,
            "k": int(random.integers(1, 45)),
            "floor": THRESHOLDS[random.integers(len(THRESHOLDS))],
            "symmetric": bool(random.integers(2)),
        },
        optional=("floor",),
    ),
    "mplp": Call(sk.mplp, _labels, _inquiry, optional=("lists", "query_rows")),
    "nearest_neighbors": Call(sk.nearest_neighbors, _nearest, _neighbors, optional=("lists", "query_rows")),
    "mutual_label_loss": Call(
        sk.mutual_label_loss,
        reference.mutual_label_loss,
        lambda random, x: {"similarity": x.similarity, **_loss(random, x)},
    ),
    "fused_mutual_label_loss": Call(
        sk.fused_mutual_label_loss,
        _fused_loss,
        lambda random, x: {
            "features": x.features,
            "memory": x.memory,
            "similarity": x.similarity if random.integers(2) else None,
            **_loss(random, x),
        },
        optional=("similarity",),
    ),
    "update_memory_": Call(
        sk.update_memory_,
        _updated,
        _update,
        written=("memory", "lists"),
        optional=("lists", "similarity"),
    ),
}
