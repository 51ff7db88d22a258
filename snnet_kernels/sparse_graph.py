"""A sparse square matrix by rows, for clustering."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class SparseGraph(NamedTuple):
    """CSR on the CPU: row i has the columns ``indices[indptr[i] : indptr[i + 1]]``, ascending, and their values."""

    indptr: Tensor  # int64 [n + 1]
    indices: Tensor  # int32 [entries]
    values: Tensor  # float32 [entries]

    def to_scipy(self) -> Any:
        """``scipy.sparse.csr_array`` [n, n]; entries of value 0 are stored explicitly. Needs scipy."""
        from scipy.sparse import csr_array

        n = len(self.indptr) - 1
        parts = (self.values.numpy(), self.indices.numpy(), self.indptr.numpy())
        return csr_array(parts, shape=(n, n))

    def to_torch(self) -> Tensor:
        """``torch.sparse_csr`` tensor [n, n]."""
        n = len(self.indptr) - 1
        return torch.sparse_csr_tensor(
            self.indptr, self.indices.long(), self.values, (n, n), check_invariants=False
        )
