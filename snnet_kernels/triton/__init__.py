"""The operations without neighbour lists on a GPU: products with the memory made tile by tile, in Triton.

A file for each operation, with the arguments of ``snnet::``; :mod:`.common` has what they share. Nothing of size
B x n floats is written. Arguments are unchecked; :mod:`snnet_kernels.ops` checks them.
"""

from ..precision import PRECISIONS
from .label_prediction import mplp
from .loss import fused_mutual_label_loss
from .neighbors import nearest_neighbors
from .similarity import memory_similarity

__all__ = ["PRECISIONS", "fused_mutual_label_loss", "memory_similarity", "mplp", "nearest_neighbors"]
