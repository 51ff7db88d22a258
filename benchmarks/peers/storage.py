"""The pseudo label memory P [n, n] as other people keep it: dense matrices, and scipy's sparse ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import snnet_kernels as sk

from ..case import Case


def dense_copy(case: Case, dtype: torch.dtype) -> Tensor:
    """P as a matrix of ``dtype`` [n, n], converted in parts; a contender may write rows of the batches."""
    n = case.shape.n
    case.check_room(f"P as {dtype}", n * n * dtype.itemsize)
    dense = torch.empty(n, n, dtype=dtype, device=case.device)
    for index in torch.arange(n, device=case.device).split(1024):
        dense[index] = case.label_rows(index).to(dtype)
    written = torch.cat([batch.index for batch in case.batches]).unique()
    rows = dense[written]
    case.on_reset(lambda: dense.index_copy_(0, written, rows))
    return dense


class SparseLabels:
    """P as CSR for rows and as CSC for columns; a write rebuilds both, because their entries move."""

    def __init__(self, case: Case) -> None:
        self.n = case.shape.n
        rows, columns = [], []
        for index in torch.arange(self.n, device=case.device).split(1024):
            row, column = case.label_rows(index).nonzero(as_tuple=True)
            rows.append(index[row].numpy())
            columns.append(column.numpy())
        self._build(np.concatenate(rows), np.concatenate(columns))

    def _build(self, rows: np.ndarray, columns: np.ndarray) -> None:
        from scipy import sparse

        ones = np.ones(len(rows), dtype=np.uint8)
        self.by_row = sparse.csr_matrix((ones, (rows, columns)), shape=(self.n, self.n))
        self.by_column = self.by_row.tocsc()

    def write(self, index: np.ndarray, labels: tuple[np.ndarray, np.ndarray]) -> None:
        """P[index] = labels, given as (position in the batch, column) of its entries; ``index`` is distinct."""
        kept = np.ones(self.n, dtype=bool)
        kept[index] = False
        row = np.repeat(np.arange(self.n), np.diff(self.by_row.indptr))
        stays = kept[row]
        entry, column = labels
        self._build(
            np.concatenate([row[stays], index[entry]]), np.concatenate([self.by_row.indices[stays], column])
        )

    def rows(self, index: np.ndarray) -> Any:
        return self.by_row[index]

    def columns(self, index: np.ndarray) -> Any:
        return self.by_column[:, index]


def stored_at(stored: Any, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(P[index], P[:, index]ᵀ) as bool [B, n], of any of the forms."""
    if isinstance(stored, sk.PseudoLabelMemory):
        return tuple(sk.unpack_labels(part, n) for part in (stored.rows(index), stored.columns(index)))
    if isinstance(stored, SparseLabels):
        parts = stored.rows(index.numpy()), stored.columns(index.numpy()).T
        return tuple(torch.from_numpy(part.toarray()).bool() for part in parts)
    return stored[index].bool(), stored[:, index].t().bool()
