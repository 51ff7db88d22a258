"""Labels by ``snnet.label``, and by the reference to compare them with."""

from __future__ import annotations

import numpy as np
import torch

import snnet_kernels as sk
from snnet.config.commands import LabelCommand
from snnet.label import label
from snnet.retrieval.sparse_labels import SparseLabels, SparseMatrix

N, D = 300, 24


def labelled(*words: object) -> tuple[SparseLabels, np.ndarray | None]:
    return label(LabelCommand.parse([*map(str, words), "--device", "cpu"]))


def dense(matrix: SparseMatrix) -> np.ndarray:
    found = np.zeros((len(matrix), len(matrix)), dtype=bool)
    for i in range(len(matrix)):
        assert (np.diff(matrix.row(i)) > 0).all()
        found[i, matrix.row(i)] = True
    assert found.sum() == len(matrix.indices) == matrix.indptr[-1]
    return found


def similarities(features: torch.Tensor) -> torch.Tensor:
    return sk.memory_similarity(features, features)


def reference_labels(features: torch.Tensor, **options: object) -> np.ndarray:
    """P after a full pass, by the reference over the same similarities."""
    index, cache = torch.arange(len(features)), similarities(features)
    packed = sk.reference.mplp(features, index, cache=cache, **options)  # type: ignore[arg-type]
    return sk.reference.unpack_labels(packed, len(features)).numpy()
