"""The operations: a file for each family, which holds all that is said of an operation once.

That is its arguments and its plain PyTorch form (:func:`.operation.operation`), the shapes of its result for tracing,
its gradient, and the public function that checks arguments. Backends only implement: see :mod:`snnet_kernels.backends`.

Every function takes CPU and CUDA tensors, and ``torch.compile(fullgraph=True)`` traces all public ones but
jaccard_graph. Products are float32 on a CPU; on CUDA :func:`snnet_kernels.set_matmul_precision` chooses their
precision. Autocast and torch's TF32 flag change neither. B batch entries, n images, d feature dimensions, L =
label_bytes(n). Similarities and memory are float32, indices int64, label bits uint8.
"""

from .. import checks
from .cluster_memory import update_memory_by_hardest_
from .jaccard_graph import blend_jaccard_, expand_query, jaccard_graph, reciprocal_weights
from .label_memory import gather_labels, label_bytes, pack_labels, unpack_labels, write_labels_
from .label_prediction import mplp
from .loss import fused_mutual_label_loss, mutual_label_loss
from .memory_update import update_memory_
from .neighbor_lists import neighbor_lists
from .neighbors import nearest_neighbors
from .shard_lists import (
    blend_rows_,
    follow_moved_rows_,
    insert_pairs_,
    listed_candidates,
    listed_ranks,
    remove_pairs_,
)
from .shard_loss import hard_negative_bars, largest_negatives, own_columns_loss
from .similarity import memory_similarity

__all__ = [
    "blend_jaccard_",
    "blend_rows_",
    "checks",
    "expand_query",
    "follow_moved_rows_",
    "fused_mutual_label_loss",
    "gather_labels",
    "hard_negative_bars",
    "insert_pairs_",
    "jaccard_graph",
    "label_bytes",
    "largest_negatives",
    "listed_candidates",
    "listed_ranks",
    "memory_similarity",
    "mplp",
    "mutual_label_loss",
    "nearest_neighbors",
    "neighbor_lists",
    "own_columns_loss",
    "pack_labels",
    "reciprocal_weights",
    "remove_pairs_",
    "unpack_labels",
    "update_memory_",
    "update_memory_by_hardest_",
    "write_labels_",
]
