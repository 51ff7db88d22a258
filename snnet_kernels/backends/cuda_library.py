"""The operations of the compiled CUDA library, below those of ``snnet::``: what is left for a device once
:mod:`.gpu` has chosen who serves and torch has made the plain products.

They compute what their namesakes of ``snnet::`` do, have no gradients and are never traced. Their schemas are those of
the namesakes, less what they do not read.
"""

from __future__ import annotations

import torch

from ..ops.operation import OPERATIONS as CONTRACTS

LIBRARY = torch.library.Library("snnet_cuda", "DEF")


def _like(name: str) -> str:
    return CONTRACTS[name].schema


SCHEMAS = (
    _like("pack_labels"),
    _like("unpack_labels"),
    _like("gather_labels"),
    _like("write_labels_"),
    "mark_cache_blocks(Tensor cache, float floor) -> Tensor",
    "mplp(Tensor index, Tensor cache, Tensor? query_rows, float threshold, SymInt min_rank, bool strict, "
    "Tensor? block_bits=None, float block_floor=0.0) -> Tensor",
    "nearest_neighbors(Tensor index, Tensor? cache, Tensor? query_rows, SymInt k) -> (Tensor, Tensor)",
    "mine_labels_(Tensor index, Tensor cache, Tensor? query_rows, Tensor(a!) row_bits, Tensor(b!) column_bits, "
    "float threshold, SymInt min_rank, bool strict, Tensor? block_bits=None, float block_floor=0.0) "
    "-> (Tensor, Tensor, Tensor)",
    _like("mutual_label_loss"),
    # kind mmcl -> loss [], ∂L/∂f [B, d] through the sparse rows of ∂L/∂s
    "sparse_label_loss(Tensor similarity, Tensor memory, Tensor[] labels, float[] weights, float delta, "
    "float hard_negative_ratio) -> (Tensor, Tensor)",
    "update_memory_(Tensor(a!) memory, Tensor index, Tensor features, Tensor momentum, Tensor(b!)? cache, "
    "Tensor? similarity, Tensor(c!)? block_bits=None, float block_floor=0.0) -> ()",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

OPERATIONS = tuple(schema.split("(", 1)[0] for schema in SCHEMAS)
