"""The operations without a cache on a GPU: products with the memory made tile by tile, in Triton.

Nothing of size B x n floats is written. Arguments are unchecked; :mod:`snnet_kernels.ops` checks them.
"""

from ..precision import PRECISIONS
from .label_prediction import mplp
from .neighbors import nearest_neighbors
from .similarity import memory_similarity
from .square_loss import square_loss

__all__ = ["PRECISIONS", "memory_similarity", "mplp", "nearest_neighbors", "square_loss"]
