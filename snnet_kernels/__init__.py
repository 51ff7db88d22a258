"""Fused memory kernels for unsupervised re-identification: labels, losses and memories of SNNet and MMCL."""

from . import compat, reference
from .backends import BackendInfo, LibraryInfo, backend_info
from .head import SNNetHead
from .modules import ExemplarMemory, MutualLabelLoss, PseudoLabelMemory
from .ops import (
    build_similarity_cache,
    fused_mutual_label_loss,
    label_bytes,
    memory_similarity,
    mplp,
    mutual_label_loss,
    nearest_neighbors,
    pack_labels,
    unpack_labels,
    update_memory_,
)
from .version import __version__

__all__ = [
    "BackendInfo",
    "ExemplarMemory",
    "LibraryInfo",
    "MutualLabelLoss",
    "PseudoLabelMemory",
    "SNNetHead",
    "__version__",
    "backend_info",
    "build_similarity_cache",
    "compat",
    "fused_mutual_label_loss",
    "label_bytes",
    "memory_similarity",
    "mplp",
    "mutual_label_loss",
    "nearest_neighbors",
    "pack_labels",
    "reference",
    "unpack_labels",
    "update_memory_",
]
