"""The operations of the compiled CUDA library, below those of :mod:`.schemas`: what is left for a device once
:mod:`.gpu` has chosen who serves and torch has made the plain products.

They compute what their namesakes of ``snnet::`` do, have no gradients and are never traced.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("snnet_cuda", "DEF")

SCHEMAS = (
    "pack_labels(Tensor labels) -> Tensor",
    "unpack_labels(Tensor labels, SymInt n) -> Tensor",
    "gather_labels(Tensor bits, Tensor index) -> Tensor",
    "write_labels_(Tensor(a!) row_bits, Tensor(b!) column_bits, Tensor index, Tensor labels) -> ()",
    "mark_cache_blocks(Tensor cache, float floor) -> Tensor",
    "mplp(Tensor index, Tensor cache, Tensor? query_rows, float threshold, int min_rank, bool strict, "
    "Tensor? block_bits=None, float block_floor=0.) -> Tensor",
    # one of cache and query_rows is given
    "nearest_neighbors(Tensor index, Tensor? cache, Tensor? query_rows, int k) -> (Tensor, Tensor)",
    "mine_labels_(Tensor index, Tensor cache, Tensor? query_rows, Tensor(a!) row_bits, Tensor(b!) column_bits, "
    "float threshold, int min_rank, bool strict, Tensor? block_bits=None, float block_floor=0.) "
    "-> (Tensor, Tensor, Tensor)",
    "mutual_label_loss(Tensor similarity, Tensor[] labels, float[] weights, str kind, float delta, "
    "float hard_negative_ratio) -> (Tensor, Tensor)",
    # kind mmcl -> loss [], ∂L/∂f [B, d] through the sparse rows of ∂L/∂s
    "sparse_label_loss(Tensor similarity, Tensor memory, Tensor[] labels, float[] weights, float delta, "
    "float hard_negative_ratio) -> (Tensor, Tensor)",
    # similarity [B, n] is given where a cache is
    "update_memory_(Tensor(a!) memory, Tensor index, Tensor features, Tensor momentum, Tensor(b!)? cache, "
    "Tensor? similarity, Tensor(c!)? block_bits=None, float block_floor=0.) -> ()",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

OPERATIONS = tuple(schema.split("(", 1)[0] for schema in SCHEMAS)
