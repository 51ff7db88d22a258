"""The operations that are measured, a file for each family, in the order of the page."""

from importlib import import_module

from ..operation import Operation

_FILES = (
    "similarity neighbor_lists labels_and_neighbors label_memory memory_update loss iteration "
    "training mmcl_trainer rank_metrics reranking cluster_memory jaccard_graph"
)
OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for file in _FILES.split()
    for operation in import_module(f".{file}", __name__).OPERATIONS
}
