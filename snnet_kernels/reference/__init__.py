"""Every operation in plain PyTorch: the oracle of the tests, the fallback, the baseline of the benchmarks.

Each operation that :func:`snnet_kernels.backend_info` lists is a function here, in any floating type, unchecked. The
arguments are not those of the public functions; ``SNNET_BACKEND=reference`` runs these in plain PyTorch. :mod:`.loop`
has the per-sample form.
"""

from ..layout import identity_labels, label_bytes
from . import loop
from .camera_lists import camera_lists
from .checksums import checksums, checksums_match
from .cluster_memory import update_memory_by_hardest_
from .jaccard_graph import blend_jaccard_, jaccard_pairs
from .label_lists import gather_label_lists, gather_list_entries, write_label_lists_
from .label_memory import gather_labels, pack_labels, unpack_labels, write_labels_
from .label_prediction import mplp
from .list_labels import mplp_from_lists, nearest_from_lists
from .loss import (
    fused_mutual_label_loss,
    fused_mutual_label_loss_with_grad,
    mutual_label_loss,
    mutual_label_loss_with_grad,
)
from .memory_update import update_memory_, update_memory_lists_
from .neighbor_lists import lists_and_lowest, neighbor_lists, symmetric_lists
from .neighbors import nearest_neighbors
from .shard_lists import (
    blended_rows,
    follow_moved_rows_,
    insert_pairs_,
    moved_pairs,
    remove_pairs_,
)
from .shard_loss import hard_negative_bars, largest_negatives, own_columns_loss
from .shard_prediction import (
    divided_samples,
    listed_candidates,
    listed_verdicts,
    own_label_sets,
    walk_candidates_,
)
from .similarity import memory_similarity, memory_similarity_backward

__all__ = [
    "blend_jaccard_",
    "blended_rows",
    "camera_lists",
    "checksums",
    "checksums_match",
    "divided_samples",
    "follow_moved_rows_",
    "fused_mutual_label_loss",
    "fused_mutual_label_loss_with_grad",
    "gather_label_lists",
    "gather_labels",
    "gather_list_entries",
    "hard_negative_bars",
    "identity_labels",
    "insert_pairs_",
    "jaccard_pairs",
    "label_bytes",
    "largest_negatives",
    "listed_candidates",
    "listed_verdicts",
    "lists_and_lowest",
    "loop",
    "memory_similarity",
    "memory_similarity_backward",
    "moved_pairs",
    "mplp",
    "mplp_from_lists",
    "mutual_label_loss",
    "mutual_label_loss_with_grad",
    "nearest_from_lists",
    "nearest_neighbors",
    "neighbor_lists",
    "own_columns_loss",
    "own_label_sets",
    "pack_labels",
    "remove_pairs_",
    "symmetric_lists",
    "unpack_labels",
    "update_memory_",
    "update_memory_by_hardest_",
    "update_memory_lists_",
    "walk_candidates_",
    "write_label_lists_",
    "write_labels_",
]
