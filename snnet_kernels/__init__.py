"""Fused memory kernels for unsupervised re-identification: labels, losses and memories of SNNet and MMCL."""

from . import compat, reference
from .backends import BackendInfo, LibraryInfo, backend_info
from .backends.gpu import register as _serve_gpu
from .head import SNNetHead
from .layout import CacheBlocks
from .modules import ExemplarMemory, MutualLabelLoss, PseudoLabelMemory
from .neighbor_list_layout import NeighborLists
from .ops import (
    build_similarity_cache,
    fused_mutual_label_loss,
    jaccard_graph,
    label_bytes,
    mark_cache_blocks,
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
    "CacheBlocks",
    "ExemplarMemory",
    "LibraryInfo",
    "MutualLabelLoss",
    "NeighborLists",
    "PseudoLabelMemory",
    "SNNetHead",
    "SparseGraph",
    "__version__",
    "backend_info",
    "build_similarity_cache",
    "compat",
    "fused_mutual_label_loss",
    "get_matmul_precision",
    "jaccard_graph",
    "label_bytes",
    "mark_cache_blocks",
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
