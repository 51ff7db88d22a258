"""Pseudo labels of a whole set of features as sparse matrices, for trainers of any kind.

The features take the place of the exemplar memory M, and MPLP of all images fills the pseudo label memory P. The
inquiries then see P complete: ``y`` is P itself, ``y_sym`` its transpose (Eq. 4), and row i of ``y_nh`` is P's row
of image i's nearest other image (Eq. 6). (In training they see P as earlier steps left it; on features that no
longer change, the two agree after one epoch.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from snnet.checks import check_unit_rows
from snnet.errors import UserError
from snnet.files.arrays import open_arrays, write_arrays
from snnet.files.outputs import check_output, write_atomically
from snnet.retrieval.candidates import (
    ENTRIES_AT_ONCE,
    FeatureRows,
    collect_candidates,
    decide,
    slices_of,
    starts,
)
from snnet.retrieval.feature_files import metadata_text
from snnet.system.processes import ALONE, Processes
from snnet.system.row_exchange import rows_of_all
from snnet_kernels.checks import check_features, check_matrix, check_prediction_options
from snnet_kernels.distributed import own_rows
from snnet_kernels.memory_size import free_memory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LABEL_SETS = ("y", "y_sym", "y_nh")
BYTES_PER_ENTRY = 48  # what a candidate or a positive takes at the most at one time, temporaries included


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
        """The positives of one image, int32, rising; IndexError unless 0 <= ``index`` < n."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in [0, {len(self)}), got {index}")
        return self.indices[self.indptr[index] : self.indptr[index + 1]]

    def counts(self) -> np.ndarray:
        """Positives of each row, int64 [n]."""
        return np.diff(self.indptr)

    def transpose(self) -> SparseMatrix:
        """The transposed matrix."""
        n = len(self)
        keys = np.empty(len(self.indices), np.int64)  # column and row
        for rows, entries in slices_of(self.indptr):
            keys[entries] = self.indices[entries].astype(np.int64) * n + self._row_of(rows)
        keys.sort()
        indptr = starts(np.bincount(self.indices, minlength=n))
        indices = np.empty_like(self.indices)
        for first in range(0, len(keys), ENTRIES_AT_ONCE):
            indices[first : first + ENTRIES_AT_ONCE] = keys[first : first + ENTRIES_AT_ONCE] % n
        return SparseMatrix(indptr, indices)

    def gather(self, index: np.ndarray) -> SparseMatrix:
        """The rows ``index`` int64 [n] of this matrix; -1 gives an empty row."""
        counts = np.where(index < 0, 0, self.counts()[index])
        found = SparseMatrix(starts(counts), np.empty(int(counts.sum()), np.int32))
        shift = np.where(index < 0, 0, self.indptr[index]) - found.indptr[:-1]
        for rows, entries in slices_of(found.indptr):
            place = np.arange(entries.start, entries.stop)
            found.indices[entries] = self.indices[place + shift[found._row_of(rows)]]
        return found

    def intersection_counts(self, other: SparseMatrix) -> np.ndarray:
        """Ones that each row shares with the same row of ``other``, int64 [n]."""
        n = len(self)
        counts = np.zeros(n, np.int64)
        for rows, entries in slices_of(self.indptr):
            others = slice(other.indptr[rows.start], other.indptr[rows.stop])
            own, theirs = (
                matrix._row_of(rows) * n + matrix.indices[part]
                for matrix, part in ((self, entries), (other, others))
            )
            # Both rise: a binary search needs no sort of them together.
            place = np.minimum(np.searchsorted(own, theirs), max(len(own) - 1, 0))
            shared = theirs[own[place] == theirs] if len(own) else theirs[:0]
            counts += np.bincount(shared // n, minlength=n)
        return counts

    def _row_of(self, rows: range) -> np.ndarray:
        """The row of each entry of some rows, int64."""
        return np.repeat(np.arange(rows.start, rows.stop), np.diff(self.indptr[rows.start : rows.stop + 1]))


@dataclass(frozen=True, eq=False)
class SparseLabels:
    """The three label sets of n images, and the nearest other image of each (-1 where there is none).

    ``classes``, where they were asked for: one an image, -1 for outliers.
    """

    y: SparseMatrix
    y_sym: SparseMatrix
    y_nh: SparseMatrix
    neighbors: np.ndarray  # int64 [n]
    names: tuple[str, ...] | None = None
    classes: np.ndarray | None = None  # int64 [n]
    metadata: dict[str, Any] = field(default_factory=dict)


def predict_sparse_labels(
    features: Tensor,
    *,
    threshold: float = 0.6,
    min_rank: int = 10,
    groups: np.ndarray | None = None,
) -> SparseLabels:
    """Pseudo labels of all images: :func:`snnet_kernels.mplp` and its lookups in a complete P.

    Takes one product of the features with themselves, 16 MB for a tile of it, and some tens of bytes a candidate.

    Args:
        features: [n, d] of any floating type, rows of norm 1 (a row of zeros is like no other), on the device that
            is to do the products; taken to float32.
        threshold, min_rank: see :func:`snnet_kernels.mplp`.
        groups: int64 [n], such as the tracklet of each image: images of one group are not each other's nearest
            neighbour, whose label is ``y_nh``.

    Raises:
        TypeError, ValueError: an argument of a wrong type, shape or value.
        UserError: there is no row, or one of another norm; there are so many candidates that they do not fit into
            memory.
    """
    found = predict_divided_labels(
        features, ALONE, None, threshold=threshold, min_rank=min_rank, groups=groups
    )
    assert found is not None
    return found


def predict_divided_labels(
    features: Tensor,
    processes: Processes,
    process_group: ProcessGroup | None,
    *,
    threshold: float = 0.6,
    min_rank: int = 10,
    groups: np.ndarray | None = None,
) -> SparseLabels | None:
    """The same over several ``processes``, each with its rows of the features: rank 0 gets the labels, others None.

    All call it. ``features`` are the own rows, :func:`snnet_kernels.distributed.own_rows`, ``groups`` those of all
    images; ``process_group`` is for tensors on the device of the features, see
    :meth:`snnet.system.processes.Processes.group`.
    """
    given = check_matrix("features", features)
    features = check_features("features", given, given.shape[1]).detach().contiguous()
    n = sum(processes.everywhere(len(features)))
    if n == 0:
        raise UserError("features must have at least one row, got none")
    shares = [own_rows(n, rank, processes.count) for rank in range(processes.count)]
    if len(features) != len(shares[processes.rank]):
        raise ValueError(
            f"features must be the {len(shares[processes.rank])} own rows of {n}, got {len(features)}"
        )
    check_unit_rows("features", given, "labels compare directions")
    check_prediction_options(threshold, min_rank)
    if groups is not None and (groups.shape != (n,) or groups.dtype != np.int64):
        raise ValueError(f"groups must be int64 [{n}], got {groups.dtype} {list(groups.shape)}")
    rows = FeatureRows(features, shares, processes, process_group)

    def check_candidates(found: int, images: int) -> None:
        _check_room(found, f"the first {images:,} of {len(rows.own):,} images")

    candidates = collect_candidates(rows, threshold, groups, check_candidates)
    parts = decide(rows, candidates, threshold, min_rank)
    neighbors = candidates.neighbors
    del candidates
    nothing = (np.empty(0, np.int64), np.empty(0, np.int32))
    own = [nothing, *((np.diff(part.indptr), part.columns) for part in parts)]
    counts, columns = (_at_first(list(arrays), processes) for arrays in zip(*own, strict=True))
    neighbors = _at_first([neighbors], processes)
    if not processes.is_first:
        return None
    y = SparseMatrix(starts(counts), columns)
    _check_room(int(y.counts()[neighbors].sum()), "the nearest neighbours' labels")
    return SparseLabels(y, y.transpose(), y.gather(neighbors), neighbors)


def _at_first(arrays: list[np.ndarray], processes: Processes) -> np.ndarray:
    """In rank 0 the arrays of all processes, joined."""
    return rows_of_all(torch.from_numpy(np.concatenate(arrays)), processes).numpy()


def save_labels(path: Path | str, labels: SparseLabels) -> None:
    """Write ``labels`` to a ``.npz`` file, whole or not at all.

    Arrays: for each of ``y``, ``y_sym`` and ``y_nh`` an ``_indptr`` int64 [n + 1] and ``_indices`` int32;
    ``neighbors`` int64 [n]; ``names``, and ``classes`` int64 [n], where they are known; ``metadata`` and
    ``checksums`` as JSON text. None needs pickle.
    """
    path = Path(path)
    check_output(path, (".npz",))
    arrays: dict[str, Any] = {}
    for name in LABEL_SETS:
        matrix = getattr(labels, name)
        arrays |= {f"{name}_indptr": matrix.indptr, f"{name}_indices": matrix.indices}
    if labels.names is not None:
        arrays["names"] = np.array(labels.names, dtype=np.str_)
    if labels.classes is not None:
        arrays["classes"] = labels.classes

    arrays |= {"neighbors": labels.neighbors, "metadata": metadata_text(labels.metadata)}
    write_atomically(path, lambda file: write_arrays(file, arrays))


def load_labels(path: Path | str) -> SparseLabels:
    """Read what :func:`save_labels` wrote, its checksums compared.

    Raises :class:`~snnet.errors.UserError` naming the file.
    """
    try:
        with open_arrays(Path(path)) as arrays:
            sets = {
                name: SparseMatrix(arrays.read(f"{name}_indptr"), arrays.read(f"{name}_indices"))
                for name in LABEL_SETS
            }
            neighbors = arrays.read("neighbors")
            names = tuple(arrays.read("names").tolist()) if "names" in arrays.types else None
            classes = arrays.read("classes") if "classes" in arrays.types else None
            metadata = json.loads(arrays.read("metadata").item())
    except KeyError as error:
        raise UserError(f"{path} is no label file (it has no array {error})") from error
    # A foreign or damaged file can fail anywhere in the reader.
    except Exception as error:
        raise UserError(f"{path} is no label file ({str(error).splitlines()[0]})") from error
    n = len(neighbors)
    whole = neighbors.dtype == np.int64 and neighbors.ndim == 1 and isinstance(metadata, dict)
    whole = whole and (names is None or len(names) == n) and bool(((neighbors >= -1) & (neighbors < n)).all())
    if classes is not None:
        whole = whole and (classes.dtype, classes.shape) == (np.int64, (n,)) and bool((classes >= -1).all())
    if not whole or not all(_is_matrix(matrix, n) for matrix in sets.values()):
        raise UserError(f"{path} is no label file (its arrays do not fit together)")
    return SparseLabels(**sets, neighbors=neighbors, names=names, classes=classes, metadata=metadata)


def _is_matrix(matrix: SparseMatrix, n: int) -> bool:
    indptr, indices = matrix.indptr, matrix.indices
    return (
        (indptr.dtype, indptr.shape, indices.dtype, indices.ndim) == (np.int64, (n + 1,), np.int32, 1)
        and bool(indptr[0] == 0 and indptr[-1] == len(indices) and (np.diff(indptr) >= 0).all())
        and bool(((indices >= 0) & (indices < n)).all())
    )


def _check_room(entries: int, of_what: str) -> None:
    needed, free = BYTES_PER_ENTRY * entries, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{of_what} have {entries:,} pairs above the threshold, which take {needed / 2**30:.1f} GiB of the "
            f"{free / 2**30:.1f} that are free: the features hardly tell images apart, or --threshold is too low"
        )
