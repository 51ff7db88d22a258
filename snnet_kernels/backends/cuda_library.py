"""The operations of the compiled CUDA library.

:mod:`.gpu` calls them where it has chosen the library; torch has then made the plain products.

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
    "nearest_neighbors(Tensor index, Tensor query_rows, SymInt k) -> (Tensor, Tensor)",
    _like("mutual_label_loss"),
    # kind mmcl -> loss [], ∂L/∂f [B, d] through the sparse rows of ∂L/∂s
    "sparse_label_loss(Tensor similarity, Tensor memory, Tensor[] labels, float[] weights, float delta, "
    "float hard_negative_ratio) -> (Tensor, Tensor)",
    _like("update_memory_"),
    # products [rows, columns] of a tile, into lists; each pair of a row and a column is met once
    "take_products_(Tensor products, SymInt first_row, SymInt first_column, Tensor(a!) columns, Tensor(b!) values, "
    "Tensor(c!) counts, Tensor(d!) floors) -> ()",
    _like("mplp_from_lists"),
    _like("nearest_from_lists"),
    _like("update_memory_lists_"),  # similarity is given
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

OPERATIONS = tuple(schema.split("(", 1)[0] for schema in SCHEMAS)
