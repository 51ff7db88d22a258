"""Pseudo labels of a whole set of features as sparse matrices, for trainers of any kind.

The features take the place of the exemplar memory M, and one pass of MPLP over all images fills the pseudo
label memory P. The inquiries then see P complete: ``y`` is P itself, ``y_sym`` its transpose (Eq. 4), and row
i of ``y_nh`` is P's row of image i's nearest other image (Eq. 6). (In training they see P as earlier steps left it;
on features that no longer change, the two agree after one epoch.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from snnet.checkpoint import check_output, write_atomically
from snnet.errors import UserError
from snnet.progress import progress
from snnet_kernels import ExemplarMemory, unpack_labels
from snnet_kernels.memory_size import free_memory

LABEL_SETS = ("y", "y_sym", "y_nh")
# Entries of the dense labels that a batch unpacks, one byte each.
DENSE_ENTRIES = 1 << 24
# What one positive takes at the most at one time, while rows are transposed or gathered.
BYTES_PER_POSITIVE = 32


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A square matrix of bits: row i has ones at ``indices[indptr[i] : indptr[i + 1]]``, rising.

    The arrays are those of ``scipy.sparse.csr_array((ones, indices, indptr), shape)``.
    """

    indptr: np.ndarray  # int64 [n + 1]
    indices: np.ndarray  # int32 [positives]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def row(self, index: int) -> np.ndarray:
        """The positives of one image, int32, rising."""
        return self.indices[self.indptr[index] : self.indptr[index + 1]]

    def counts(self) -> np.ndarray:
        """Positives of each row, int64 [n]."""
        return np.diff(self.indptr)

    def transpose(self) -> SparseMatrix:
        """The transposed matrix."""
        rows = np.repeat(np.arange(len(self), dtype=np.int32), self.counts())
        # Stable, so that the rows of each column stay in rising order.
        order = np.argsort(self.indices, kind="stable")
        return SparseMatrix(_starts(np.bincount(self.indices, minlength=len(self))), rows[order])

    def gather(self, index: np.ndarray) -> SparseMatrix:
        """The rows ``index`` int64 [n] of this matrix; -1 gives an empty row."""
        counts = np.where(index < 0, 0, self.counts()[index])
        indptr = _starts(counts)
        shift = np.repeat(np.where(index < 0, 0, self.indptr[index]) - indptr[:-1], counts)
        return SparseMatrix(indptr, self.indices[np.arange(indptr[-1]) + shift])

    def intersection_counts(self, other: SparseMatrix) -> np.ndarray:
        """Ones that each row shares with the same row of ``other``, int64 [n]."""
        n = len(self)
        own, others = (
            np.repeat(np.arange(n), matrix.counts()) * n + matrix.indices for matrix in (self, other)
        )
        # Both rise: a binary search needs no sort of them together.
        place = np.minimum(np.searchsorted(own, others), max(len(own) - 1, 0))
        shared = others[own[place] == others] if len(own) else others[:0]
        return np.bincount(shared // n, minlength=n)


@dataclass(frozen=True, eq=False)
class SparseLabels:
    """The three label sets of n images, and the nearest other image of each (-1 where there is none)."""

    y: SparseMatrix
    y_sym: SparseMatrix
    y_nh: SparseMatrix
    neighbors: np.ndarray  # int64 [n]
    names: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def predict_sparse_labels(
    features: Tensor,
    *,
    threshold: float = 0.6,
    min_rank: int = 10,
    strict: bool = False,
    cache: bool | str = "auto",
) -> SparseLabels:
    """Pseudo labels of all images by one pass of MPLP.

    Args:
        features: float32 [n, d], rows of length 1, on the device that is to do the work.
        threshold, min_rank, strict: see :func:`snnet_kernels.mplp`.
        cache: keep the similarity matrix (4n² bytes): ``True``, ``False`` (products are made as they are
            needed) or ``"auto"``, where it fits.

    Raises:
        UserError: there are so many positives that the label sets do not fit into memory.
    """
    n, d = features.shape
    memory = ExemplarMemory(n, d, cache, device=features.device)
    memory.initialize_(features)
    step = max(1, min(1024, DENSE_ENTRIES // n))
    counts, columns, neighbors = [], [], []
    positives = 0
    with progress(None, "labelling", total=n, unit="image") as bar:
        for start in range(0, n, step):
            index = torch.arange(start, min(start + step, n), device=features.device)
            packed = memory.predict_labels(index, threshold, min_rank, strict=strict)
            row, column = unpack_labels(packed, n).nonzero(as_tuple=True)
            counts.append(row.bincount(minlength=len(index)).cpu().numpy())
            columns.append(column.to(torch.int32).cpu().numpy())
            neighbors.append(memory.nearest(index)[0].squeeze(1).cpu().numpy())
            positives += len(row)
            _check_room(positives, f"the first {start + len(index):,} of {n:,} images")
            bar.update(len(index))
    memory.drop_cache_()
    y = SparseMatrix(_starts(np.concatenate(counts)), np.concatenate(columns))
    nearest = np.concatenate(neighbors)
    _check_room(int(y.counts()[nearest].sum()), "the nearest neighbours")
    return SparseLabels(y, y.transpose(), y.gather(nearest), nearest)


def save_labels(path: Path, labels: SparseLabels) -> None:
    """Write ``labels`` to a ``.npz`` file, whole or not at all.

    Arrays: for each of ``y``, ``y_sym`` and ``y_nh`` an ``_indptr`` int64 [n + 1] and ``_indices`` int32;
    ``neighbors`` int64 [n]; ``names`` where they are known; ``metadata`` as JSON text. None needs pickle.
    """
    check_output(path, (".npz",))
    arrays: dict[str, Any] = {}
    for name in LABEL_SETS:
        matrix = getattr(labels, name)
        arrays |= {f"{name}_indptr": matrix.indptr, f"{name}_indices": matrix.indices}
    if labels.names is not None:
        arrays["names"] = np.array(labels.names, dtype=np.str_)

    def write(file: IO[bytes]) -> None:
        metadata = np.array(json.dumps(labels.metadata))
        np.savez(file, **arrays, neighbors=labels.neighbors, metadata=metadata)

    write_atomically(path, write)


def load_labels(path: Path) -> SparseLabels:
    """Read what :func:`save_labels` wrote; raises :class:`~snnet.errors.UserError` naming the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sets = {
                name: SparseMatrix(arrays[f"{name}_indptr"], arrays[f"{name}_indices"]) for name in LABEL_SETS
            }
            names = tuple(arrays["names"].tolist()) if "names" in arrays else None
            metadata = json.loads(arrays["metadata"].item())
            return SparseLabels(**sets, neighbors=arrays["neighbors"], names=names, metadata=metadata)
    # A foreign or damaged file can fail anywhere in the reader.
    except Exception as error:
        raise UserError(f"{path} is no label file ({str(error).splitlines()[0]})") from error


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _check_room(positives: int, of_what: str) -> None:
    needed, free = BYTES_PER_POSITIVE * positives, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{of_what} have {positives:,} positives, which take {needed / 2**30:.1f} GiB of {free / 2**30:.1f} "
            "that are free: the features hardly tell images apart, or --threshold is too low"
        )
