"""Pseudo labels of a whole set of features as sparse matrices, for trainers of any kind.

The features take the place of the exemplar memory M, and MPLP of all images fills the pseudo label memory P. The
inquiries then see P complete: ``y`` is P itself, ``y_sym`` its transpose (Eq. 4), and row i of ``y_nh`` is P's row
of image i's nearest other image (Eq. 6). (In training they see P as earlier steps left it; on features that no
longer change, the two agree after one epoch.)

For all images at once MPLP needs each similarity once, and the matrix at no time: whatever is more similar to a
candidate p than the anchor is, lies above the threshold where the anchor does, so the anchor's rank in the whole row
of p is its rank among p's own candidates. Candidates are collected tile by tile; the rest is sparse.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from snnet.checks import check_unit_rows
from snnet.errors import UserError
from snnet.files.arrays import open_arrays, write_arrays
from snnet.files.outputs import check_output, write_atomically
from snnet.system.progress import progress
from snnet_kernels import memory_similarity, mplp, nearest_neighbors, unpack_labels
from snnet_kernels.checks import check_features, check_matrix, check_prediction_options
from snnet_kernels.memory_size import free_memory

LABEL_SETS = ("y", "y_sym", "y_nh")
TILE_ENTRIES = 1 << 24  # similarities that are held at a time
BYTES_PER_ENTRY = 96  # what a candidate or a positive takes at the most at one time, temporaries included


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

    Takes one product of the features with themselves, 64 MB for a tile of it, and some tens of bytes a candidate.

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
    given = check_matrix("features", features)
    features = check_features("features", given, given.shape[1]).detach().contiguous()
    if len(features) == 0:
        raise UserError("features must have at least one row, got none")
    check_unit_rows("features", given, "labels compare directions")
    check_prediction_options(threshold, min_rank)
    if groups is not None and (groups.shape != (len(features),) or groups.dtype != np.int64):
        raise ValueError(f"groups must be int64 [{len(features)}], got {groups.dtype} {list(groups.shape)}")
    candidates, neighbors = _collect_candidates(features, threshold, groups)
    y, doubtful = _decide(candidates, min_rank)
    if len(doubtful):
        rows = _predict_rows(features, doubtful, threshold, min_rank)
        y = _with_rows(y, dict(zip(doubtful.tolist(), rows, strict=True)))
    _check_room(int(y.counts()[neighbors].sum()), "the nearest neighbours' labels")
    return SparseLabels(y, y.transpose(), y.gather(neighbors), neighbors)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Entries above the threshold in each row of S, by falling similarity, ties by lower column."""

    indptr: np.ndarray  # int64 [n + 1]
    columns: np.ndarray  # int32 [candidates]
    similarity: np.ndarray  # float32 [candidates]


def _collect_candidates(
    features: Tensor, threshold: float, groups: np.ndarray | None
) -> tuple[_Candidates, np.ndarray]:
    """The candidates of all images, and the nearest other image of each, int64 [n]."""
    n = len(features)
    group = None if groups is None else torch.from_numpy(groups).to(features.device)
    bar = np.float32(threshold)  # in float32 0.6 is a little more than 0.6
    step = max(1, TILE_ENTRIES // n)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    neighbors, found = [], 0
    with progress(None, "labelling", total=n, unit="image") as bar_shown:
        for start in range(0, n, step):
            index = torch.arange(start, min(start + step, n), device=features.device)
            tile = memory_similarity(features[start : start + step], features)
            allowed = tile if group is None else tile.masked_fill(group[index, None] == group, -torch.inf)
            nearest, value = nearest_neighbors(features, index, query_rows=allowed)
            neighbors.append(nearest.masked_fill(value == -torch.inf, -1).squeeze(1).cpu().numpy())
            row, column = (tile > float(bar)).nonzero(as_tuple=True)
            similarity = tile[row, column].cpu().numpy()
            columns, counts = column.cpu().numpy(), row.bincount(minlength=len(index)).cpu().numpy()
            order = np.lexsort((columns, -similarity, row.cpu().numpy()))
            parts.append((counts, columns[order].astype(np.int32), similarity[order]))
            found += len(order)
            _check_room(found, f"the first {start + len(index):,} of {n:,} images")
            bar_shown.update(len(index))
    counts, columns, similarity = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Candidates(_starts(counts), columns, similarity), np.concatenate(neighbors)


def _decide(candidates: _Candidates, min_rank: int) -> tuple[SparseMatrix, np.ndarray]:
    """The labels of all images; and the images whose anchor is no candidate of one of their candidates.

    Those are not decided: their anchor is another image than they themselves, or rounding put a similarity above the
    threshold in one row and not in the other.
    """
    indptr, columns = candidates.indptr, candidates.columns.astype(np.int64)
    counts, n = np.diff(indptr), len(indptr) - 1
    row = np.repeat(np.arange(n), counts)
    position = np.arange(len(row)) - indptr[row]
    # Entries of row p by column, so that an anchor is found in it.
    by_column = np.lexsort((columns, row))
    keys = row[by_column] * n + columns[by_column]
    ranks = _entries_above(candidates, row)[by_column]
    anchors = (
        columns[np.minimum(indptr[:-1], max(len(columns) - 1, 0))] if len(columns) else np.zeros(n, np.int64)
    )
    wanted = columns * n + anchors[row]
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    known = keys[place] == wanted
    most = np.maximum(counts, min_rank)
    first = counts.copy()  # position of the first inconsistent candidate
    bad = known & (ranks[place] > most[row])
    np.minimum.at(first, row[bad], position[bad])
    positives = np.minimum(np.maximum(first, 2), counts)
    chosen = position < positives[row]
    needs_walk = counts > 2
    doubtful = np.unique(row[~known & needs_walk[row] & (position < first[row])])
    own = np.arange(n)
    return _from_pairs(
        np.concatenate([row[chosen], own]), np.concatenate([columns[chosen], own]), n
    ), doubtful


def _entries_above(candidates: _Candidates, row: np.ndarray) -> np.ndarray:
    """For each candidate how many of its row have a larger similarity, int64."""
    similarity, entry = candidates.similarity, np.arange(len(row))
    new = np.ones(len(row), dtype=bool)  # the first entry of its row with its similarity
    new[1:] = (row[1:] != row[:-1]) | (similarity[1:] != similarity[:-1])
    return np.maximum.accumulate(np.where(new, entry, 0)) - candidates.indptr[row]


def _predict_rows(features: Tensor, index: np.ndarray, threshold: float, min_rank: int) -> list[np.ndarray]:
    """The positives of a few images by the operation itself."""
    found = []
    for part in torch.from_numpy(index).to(features.device).split(max(1, TILE_ENTRIES // len(features))):
        labels = unpack_labels(mplp(features, part, threshold, min_rank), len(features))
        found += [row.nonzero().flatten().cpu().numpy() for row in labels]
    return found


def _with_rows(matrix: SparseMatrix, rows: dict[int, np.ndarray]) -> SparseMatrix:
    """``matrix`` with other rows in some places."""
    n = len(matrix)
    row = np.repeat(np.arange(n), matrix.counts())
    kept = ~np.isin(row, list(rows))
    pairs = [(np.full(len(columns), i), columns) for i, columns in rows.items()]
    return _from_pairs(
        np.concatenate([row[kept], *(i for i, _ in pairs)]),
        np.concatenate([matrix.indices[kept], *(columns for _, columns in pairs)]),
        n,
    )


def _from_pairs(rows: np.ndarray, columns: np.ndarray, n: int) -> SparseMatrix:
    """The matrix with ones at (row, column), any of which may come twice."""
    keys = np.unique(rows * n + columns)
    return SparseMatrix(_starts(np.bincount(keys // n, minlength=n)), (keys % n).astype(np.int32))


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

    def write(file: IO[bytes]) -> None:
        write_arrays(file, {**arrays, "neighbors": labels.neighbors, "metadata": json.dumps(labels.metadata)})

    write_atomically(path, write)


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


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _check_room(entries: int, of_what: str) -> None:
    needed, free = BYTES_PER_ENTRY * entries, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{of_what} have {entries:,} pairs above the threshold, which take {needed / 2**30:.1f} GiB of the "
            f"{free / 2**30:.1f} that are free: the features hardly tell images apart, or --threshold is too low"
        )
