"""Classes and functions of public code, with their signatures and results, built on the operations of this package.

A trainer that uses them runs on this package by changing its imports. The MMCL authors' classes are here, those of
cluster-contrast in :mod:`.cluster_contrast`, and the hybrid memories of SpCL and DCMIP in :mod:`.hybrid`.
"""

from . import cluster_contrast, hybrid
from .mmcl import EPOCHS, MMCL, MPLP, Memory

__all__ = ["EPOCHS", "MMCL", "MPLP", "Memory", "cluster_contrast", "hybrid"]
