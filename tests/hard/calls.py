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
from tests.hard.drawing import MIN_RANKS, MOMENTA, THRESHOLDS, Arguments

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
    """What ``function`` returns, as a list, and after it the arguments that it writes."""
    returned = function(**given)
    found = [] if returned is None else [returned] if isinstance(returned, Tensor) else list(returned)
    return [value for value in found if isinstance(value, Tensor)] + [
        given[name] for name in written if given.get(name) is not None
    ]


def copies(given: Named) -> Named:
    """Plain copies of all arguments: dense, contiguous, apart from each other, features in float32."""
    return {name: _copied(name, value) for name, value in given.items()}


def _copied(name: str, value: Any) -> Any:
    if isinstance(value, sk.CacheBlocks):
        return sk.CacheBlocks(_copied("bits", value.bits), float(value.floor))
    if isinstance(value, Tensor):
        plain = value.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
        return plain.float() if name in TO_FLOAT else plain
    if isinstance(value, (list, tuple)) and name == "labels":
        return [_copied(name, one) for one in value]
    if name == "strict":
        return bool(value)
    if name in ("threshold", "floor", "delta", "hard_negative_ratio"):
        return float(value)
    return value


def _inquiry(random: Random, x: Arguments) -> Named:
    cache = x.cache if random.integers(2) else None
    blocks = sk.mark_cache_blocks(x.cache, 0.25) if cache is not None and random.integers(2) else None
    return {
        "memory": x.memory,
        "index": x.index,
        "threshold": THRESHOLDS[random.integers(len(THRESHOLDS))],
        "min_rank": MIN_RANKS[random.integers(len(MIN_RANKS))],
        "cache": cache,
        "query_rows": x.similarity if random.integers(2) else None,
        "blocks": blocks,
        "strict": bool(random.integers(2)),
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
    cache = x.cache.clone() if random.integers(2) else None
    return {
        "memory": x.memory.clone(),
        "index": x.index,
        "features": x.features,
        "momentum": MOMENTA[random.integers(len(MOMENTA))],
        "cache": cache,
        "similarity": x.similarity if random.integers(2) else None,
        "blocks": sk.mark_cache_blocks(x.cache, 0.25) if cache is not None and random.integers(2) else None,
    }


def _neighbors(random: Random, x: Arguments) -> Named:
    inquiry = _inquiry(random, x)
    return {"k": int(random.integers(1, 6))} | {
        name: inquiry[name] for name in ("memory", "index", "cache", "query_rows")
    }


def _bits(x: Arguments) -> Named:
    return {"row_bits": x.row_bits.clone(), "column_bits": x.column_bits.clone()}


def _mine(**given: Any) -> list[Tensor]:
    bits = given.pop("row_bits"), given.pop("column_bits")
    nearest = {name: given[name] for name in ("memory", "index", "cache", "query_rows")}
    labels = reference.mplp(**given)
    place = reference.nearest_neighbors(k=1, **nearest)[0].flatten()
    found = [
        labels,
        reference.gather_labels(bits[1], given["index"]),
        reference.gather_labels(bits[0], place),
    ]
    reference.write_labels_(*bits, given["index"], labels)
    return found


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
    "build_similarity_cache": Call(
        sk.build_similarity_cache, reference.build_similarity_cache, lambda random, x: {"memory": x.memory}
    ),
    "mark_cache_blocks": Call(
        sk.mark_cache_blocks,
        reference.mark_cache_blocks,
        lambda random, x: {"cache": x.cache, "floor": THRESHOLDS[random.integers(len(THRESHOLDS))]},
    ),
    "mplp": Call(sk.mplp, reference.mplp, _inquiry, optional=("cache", "query_rows", "blocks")),
    "nearest_neighbors": Call(
        sk.nearest_neighbors, reference.nearest_neighbors, _neighbors, optional=("cache", "query_rows")
    ),
    "mine_labels_": Call(
        ops.mine_labels_,
        _mine,
        lambda random, x: {**_inquiry(random, x), **_bits(x)},
        written=("row_bits", "column_bits"),
        optional=("cache", "query_rows", "blocks"),
    ),
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
        reference.update_memory_,
        _update,
        written=("memory", "cache"),
        optional=("cache", "similarity", "blocks"),
    ),
}
