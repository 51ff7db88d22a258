"""The operations that are measured, a file for each family, in the order of the page."""

from ..operation import Operation
from . import (
    cluster_memory,
    iteration,
    iterations,
    jaccard,
    label_memory,
    label_prediction,
    label_step,
    loss,
    memory_update,
    mmcl_trainer,
    neighbor_lists,
    neighbors,
    rank_metrics,
    reranking,
    similarity,
    training,
)

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        similarity.similarity,
        neighbor_lists.building,
        label_prediction.from_lists,
        label_prediction.streaming,
        neighbors.streaming,
        label_memory.columns,
        label_memory.rows,
        label_memory.write,
        memory_update.alone,
        memory_update.with_lists,
        *loss.LOSSES,
        label_step.label_step,
        iteration.iteration,
        iterations.twenty,
        training.training,
        mmcl_trainer.mmcl_trainer,
        rank_metrics.ranks,
        reranking.reranked,
        cluster_memory.mean_memory,
        cluster_memory.hard_memory,
        jaccard.jaccard,
        jaccard.clustering,
        jaccard.after_search,
    )
}
