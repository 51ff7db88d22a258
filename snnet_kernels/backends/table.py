"""Which backend runs which operation on which device: the only table for dispatch, ``SNNET_BACKEND``, ``backend_info``.

``SNNET_BACKEND`` forces one backend for every operation: ``reference`` (plain PyTorch), ``cpu`` (the compiled CPU
library), ``cuda`` (the compiled CUDA library) or ``triton``. If the forced backend is not available, the import raises.
If it does not implement an operation, or a form of it, the call raises.
"""

from __future__ import annotations

import os
from typing import NamedTuple

BACKENDS = ("reference", "cpu", "cuda", "triton")
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}


class Servers(NamedTuple):
    """The backends that implement an operation, best first; if none of them is available, plain PyTorch runs."""

    cpu: tuple[str, ...]  # CPU tensors
    at_hand: tuple[str, ...]  # CUDA tensors, if similarities are given, or few are to compute
    streaming: tuple[str, ...]  # CUDA tensors otherwise: products are computed as needed
    plain: bool = False  # every GPU backend leaves it to torch: a single product, or sorting


_COMPILED = Servers(("cpu",), ("cuda",), ("cuda",))
_ON_CPU = Servers(("cpu",), (), ())
TABLE = {
    "pack_labels": _COMPILED,
    "unpack_labels": _COMPILED,
    "write_labels_": _COMPILED,
    "gather_labels": _COMPILED,
    "checksums": Servers(("cpu",), (), (), plain=True),
    "gather_label_lists": _ON_CPU,
    "gather_list_entries": _ON_CPU,
    "write_label_lists_": _ON_CPU,
    "memory_similarity": Servers(("cpu",), (), (), plain=True),
    "memory_similarity_backward": Servers(("cpu",), (), (), plain=True),
    "pause": Servers((), (), (), plain=True),
    "mplp": Servers(("cpu",), ("triton",), ("triton",)),
    "nearest_neighbors": Servers(("cpu",), ("cuda", "triton"), ("triton", "cuda")),
    "mutual_label_loss": _COMPILED,
    "fused_mutual_label_loss": Servers(("cpu",), ("cuda", "triton"), ("triton", "cuda")),
    "update_memory_": _COMPILED,
    "neighbor_lists": _COMPILED,
    "symmetric_lists": Servers(("cpu",), (), (), plain=True),
    "mplp_from_lists": _COMPILED,
    "nearest_from_lists": _COMPILED,
    "update_memory_lists_": _COMPILED,
    "divided_samples": _ON_CPU,
    "listed_candidates": _ON_CPU,
    "listed_verdicts": _ON_CPU,
    "walk_candidates_": _ON_CPU,
    "own_label_sets": _ON_CPU,
    "blended_rows": _ON_CPU,
    "follow_moved_rows_": _ON_CPU,
    "moved_pairs": _ON_CPU,
    "insert_pairs_": _ON_CPU,
    "remove_pairs_": _ON_CPU,
    "largest_negatives": _ON_CPU,
    "hard_negative_bars": _ON_CPU,
    "own_columns_loss": _ON_CPU,
    "reciprocal_weights": _ON_CPU,
    "expand_query": _ON_CPU,
    "jaccard_pairs": _ON_CPU,
    "blend_jaccard_": _ON_CPU,
    "update_memory_by_hardest_": _ON_CPU,
}
AVAILABLE: dict[str, bool] = dict.fromkeys(BACKENDS, False)  # set as libraries load


def forced_backend() -> str | None:
    """The value of ``SNNET_BACKEND``; ValueError if it is not a backend."""
    name = os.environ.get("SNNET_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"SNNET_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


FORCED = forced_backend()


def servers(operation: str, device_type: str) -> tuple[str, ...]:
    """The backends that run ``operation`` for tensors on ``device_type``; two where it depends on the call."""
    row = TABLE[operation]
    could = {"cpu": row.cpu, "cuda": row.at_hand + row.streaming}.get(device_type, ())
    return tuple(dict.fromkeys(name for name in could if AVAILABLE[name])) or ("reference",)


def require_forced_backend(operation: str, device_type: str) -> None:
    """Raise if SNNET_BACKEND forces a backend that does not implement ``operation`` on ``device_type``."""
    if FORCED is None or (TABLE[operation].plain and device_type == _DEVICES.get(FORCED)):
        return
    serving = servers(operation, device_type)
    if FORCED not in serving:
        raise NotImplementedError(
            f"SNNET_BACKEND={FORCED} does not serve {operation} for {device_type} tensors; "
            f"without it the {', '.join(serving)} backend would"
        )


def choose(operation: str, at_hand: bool = True) -> str:
    """The backend of a call with CUDA tensors: the best available, or the forced one, or NotImplementedError."""
    preferred = TABLE[operation].at_hand if at_hand else TABLE[operation].streaming
    for name in preferred:
        if AVAILABLE[name] and FORCED in (None, name):
            return name
    if FORCED is not None:
        there = [name for name in ("cuda", "triton") if AVAILABLE[name]]
        raise NotImplementedError(
            f"SNNET_BACKEND={FORCED} does not serve this call of {operation} (of the backends that could, "
            f"{', '.join(preferred)}, there are: {', '.join(there) or 'none'})"
        )
    return "reference"
