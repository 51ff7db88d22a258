"""Which backend runs which operation on which device: for dispatch, ``SNNET_BACKEND`` and ``backend_info``.

For CUDA tensors the table says it. For CPU tensors torch knows it: the compiled library registers what it has.

``SNNET_BACKEND`` forces one backend for every operation: ``reference`` (plain PyTorch), ``cpu`` (the compiled CPU
library), ``cuda`` (the compiled CUDA library) or ``triton``. If the forced backend is not available, the import raises.
If it does not implement an operation, or a form of it, the call raises.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

BACKENDS = ("reference", "cpu", "cuda", "triton")
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}


class Servers(NamedTuple):
    """The backends that implement an operation for CUDA tensors, best first; without them plain PyTorch runs."""

    at_hand: tuple[
        str, ...
    ] = ()  # if similarities are given, or few are to compute, or parts of the batch do
    streaming: tuple[str, ...] = ()  # otherwise: products are computed as needed
    plain: bool = False  # every GPU backend leaves it to torch: a single product, or sorting


_COMPILED = Servers(("cuda",), ("cuda",))
_PLAIN = Servers(plain=True)
NOWHERE = Servers()  # an operation that is not in the table
TABLE = {
    "pack_labels": _COMPILED,
    "unpack_labels": _COMPILED,
    "write_labels_": _COMPILED,
    "gather_labels": _COMPILED,
    "checksums": _PLAIN,
    "checksums_match": _PLAIN,
    "memory_similarity": _PLAIN,
    "memory_similarity_backward": _PLAIN,
    "mplp": Servers(("triton",), ("triton",)),
    "nearest_neighbors": Servers(("cuda", "triton"), ("triton", "cuda")),
    "mutual_label_loss": _COMPILED,
    "fused_mutual_label_loss": Servers(("cuda", "triton"), ("triton", "cuda")),
    "update_memory_": _COMPILED,
    "neighbor_lists": _COMPILED,
    "symmetric_lists": _PLAIN,
    "mplp_from_lists": _COMPILED,
    "nearest_from_lists": _COMPILED,
    "update_memory_lists_": _COMPILED,
}
# For CUDA tensors, set as libraries load; either may still have no code for one of the devices.
AVAILABLE = {"cuda": False, "triton": False}
COMPILED_FOR_CPU: set[str] = set()  # the operations of the CPU library; each is added as it is defined


def forced_backend() -> str | None:
    """The value of ``SNNET_BACKEND``; ValueError if it is not a backend."""
    name = os.environ.get("SNNET_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"SNNET_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


FORCED = forced_backend()


def _serves(name: str, without_code: Collection[str]) -> bool:
    return AVAILABLE[name] and name not in without_code


def servers(operation: str, device_type: str, without_code: Collection[str] = ()) -> tuple[str, ...]:
    """The backends that run ``operation`` for tensors on ``device_type``; two where it depends on the call.

    ``without_code``: the backends that have no code for the device.
    """
    if device_type == "cpu":
        return ("cpu",) if operation in COMPILED_FOR_CPU else ("reference",)
    row = TABLE.get(operation, NOWHERE)
    could = row.at_hand + row.streaming if device_type == "cuda" else ()
    return tuple(dict.fromkeys(name for name in could if _serves(name, without_code))) or ("reference",)


def require_forced_backend(operation: str, device_type: str) -> None:
    """Raise if SNNET_BACKEND forces a backend that does not implement ``operation`` on ``device_type``."""
    if FORCED is None or (TABLE.get(operation, NOWHERE).plain and device_type == _DEVICES.get(FORCED)):
        return
    serving = servers(operation, device_type)
    if FORCED not in serving:
        raise NotImplementedError(
            f"SNNET_BACKEND={FORCED} does not serve {operation} for {device_type} tensors; "
            f"without it the {', '.join(serving)} backend would"
        )


def choose(operation: str, at_hand: bool = True, without_code: Collection[str] = ()) -> str:
    """The backend of a call with CUDA tensors: the best available, or the forced one, or NotImplementedError."""
    row = TABLE.get(operation, NOWHERE)
    if row.plain:
        return "reference"
    preferred = row.at_hand if at_hand else row.streaming
    for name in preferred:
        if _serves(name, without_code) and FORCED in (None, name):
            return name
    if FORCED is not None:
        there = [name for name in ("cuda", "triton") if _serves(name, without_code)]
        raise NotImplementedError(
            f"SNNET_BACKEND={FORCED} does not serve this call of {operation} (of the backends that could, "
            f"{', '.join(preferred)}, there are: {', '.join(there) or 'none'})"
        )
    return "reference"
