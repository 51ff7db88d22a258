"""The operations of the compiled CUDA library, below those of ``snnet::``: what is left for a device once
:mod:`.gpu` has chosen who serves and torch has made the plain products.

They compute what their namesakes of ``snnet::`` do, have no gradients and are never traced. Their schemas are those of
the namesakes, less what they do not read.
"""

from __future__ import annotations

import torch

from ..ops.operation import OPERATIONS as CONTRACTS

LIBRARY = torch.library.Library("snnet_cuda", "DEF")
NO_MEMORY = ("Tensor memory, ", "")  # similarities are at hand
SOME_CACHE = ("Tensor? cache", "Tensor cache")


def _like(name: str, *changes: tuple[str, str]) -> str:
    schema = CONTRACTS[name].schema
    for before, after in changes:
        assert before in schema, f"{before!r} is not in {schema}"
        schema = schema.replace(before, after)
    return schema


SCHEMAS = (
    _like("pack_labels"),
    _like("unpack_labels"),
    _like("gather_labels"),
    _like("write_labels_"),
    _like("mark_cache_blocks"),
    _like("mplp", NO_MEMORY, SOME_CACHE),
    _like("nearest_neighbors", NO_MEMORY),  # one of cache and query_rows is given
    _like("mine_labels_", NO_MEMORY, SOME_CACHE),
    _like("mutual_label_loss"),
    # kind mmcl -> loss [], ∂L/∂f [B, d] through the sparse rows of ∂L/∂s
    "sparse_label_loss(Tensor similarity, Tensor memory, Tensor[] labels, float[] weights, float delta, "
    "float hard_negative_ratio) -> (Tensor, Tensor)",
    _like("update_memory_"),  # similarity [B, n] is given where a cache is
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

OPERATIONS = tuple(schema.split("(", 1)[0] for schema in SCHEMAS)
