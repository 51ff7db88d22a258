"""Other people's classes and functions, with their signatures and results, on the operations of this package.

A trainer that was written for them runs on this package by changing its imports: the MMCL authors' from here, those of
cluster-contrast from :mod:`.cluster_contrast`, the hybrid memories of SpCL and DCMIP from :mod:`.hybrid`.
"""

from . import cluster_contrast, hybrid
from .mmcl import EPOCHS, MMCL, MPLP, Memory

__all__ = ["EPOCHS", "MMCL", "MPLP", "Memory", "cluster_contrast", "hybrid"]
