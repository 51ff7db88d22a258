"""The operations, one file per family. Each file is the only definition of its operations:

the schema and the plain PyTorch form (:func:`.operation.operation`), the fake result for tracing, the gradient, and
the public function, which checks its arguments. Backends only add implementations: see :mod:`snnet_kernels.backends`.

Every function takes CPU and CUDA tensors. ``torch.compile(fullgraph=True)`` traces all public ones, jaccard_graph only
without cameras.
Products are float32 on a CPU; on CUDA :func:`snnet_kernels.set_matmul_precision` sets their precision. Autocast and
torch's TF32 flag change neither. Shapes: B batch entries, n images, d feature dimensions, L = label_bytes(n). Types:
similarities and memory are float32, indices int64, label bits uint8.
"""

# These files define operations, and have no name that is read from here.
from . import checksums, label_lists, list_labels, shard_lists, shard_loss, shard_prediction  # noqa: F401
from .cluster_memory import update_memory_by_hardest_
from .jaccard_graph import blend_jaccard_, jaccard_graph
from .label_memory import gather_labels, label_bytes, pack_labels, unpack_labels, write_labels_
from .label_prediction import mplp
from .loss import fused_mutual_label_loss, mutual_label_loss
from .memory_update import update_memory_
from .neighbor_lists import lists_and_lowest, neighbor_lists
from .neighbors import nearest_neighbors
from .similarity import memory_similarity

__all__ = [
    "blend_jaccard_",
    "fused_mutual_label_loss",
    "gather_labels",
    "jaccard_graph",
    "label_bytes",
    "lists_and_lowest",
    "memory_similarity",
    "mplp",
    "mutual_label_loss",
    "nearest_neighbors",
    "neighbor_lists",
    "pack_labels",
    "unpack_labels",
    "update_memory_",
    "update_memory_by_hardest_",
    "write_labels_",
]
