"""Fused memory kernels for unsupervised re-identification: labels, losses and memories of SNNet and MMCL."""

from . import compat, reference
from .backends import BackendInfo, LibraryInfo, backend_info
from .backends.gpu import register as _serve_gpu
from .exemplar_memory import ExemplarMemory
from .head import SNNetHead
from .label_loss import MutualLabelLoss
from .label_memory import PseudoLabelMemory
from .neighbor_list_layout import NeighborLists
from .ops import (
    fused_mutual_label_loss,
    jaccard_graph,
    label_bytes,
    memory_similarity,
    mplp,
    mutual_label_loss,
    nearest_neighbors,
    neighbor_lists,
    pack_labels,
    unpack_labels,
    update_memory_,
)
from .precision import get_matmul_precision, set_matmul_precision
from .sparse_graph import SparseGraph
from .version import __version__

if backend_info().forced != "reference":
    _serve_gpu()

__all__ = [
    "BackendInfo",
    "ExemplarMemory",
    "LibraryInfo",
    "MutualLabelLoss",
    "NeighborLists",
    "PseudoLabelMemory",
    "SNNetHead",
    "SparseGraph",
    "__version__",
    "backend_info",
    "compat",
    "fused_mutual_label_loss",
    "get_matmul_precision",
    "jaccard_graph",
    "label_bytes",
    "memory_similarity",
    "mplp",
    "mutual_label_loss",
    "nearest_neighbors",
    "neighbor_lists",
    "pack_labels",
    "reference",
    "set_matmul_precision",
    "unpack_labels",
    "update_memory_",
]
