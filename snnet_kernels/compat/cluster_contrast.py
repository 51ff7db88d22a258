"""The distance and the memory of cluster-contrast's training code, with its signatures and results.

``compute_jaccard_distance`` is the same in SpCL. Differences: distances are a sparse matrix, nothing is moved to a GPU
implicitly, and a memory row that would not be finite is not written.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .. import checks, ops
from .layer import MemoryLayer, SampleMemory, check_inputs, check_settings


def compute_jaccard_distance(
    target_features: Tensor,
    k1: int = 20,
    k2: int = 6,
    print_flag: bool = True,
    search_option: int = 0,
    use_float16: bool = False,
    *,
    max_distance: float = 1.0,
) -> Any:
    """Jaccard distances of all pairs that share a neighbour, for ``sklearn.cluster.DBSCAN(metric="precomputed")``.

    Equals the dense matrix of the original up to rounding; a pair that is not listed has distance 1, or one above
    ``max_distance``. DBSCAN gives the same labels for every eps below 1 and up to ``max_distance``, with
    ``min_samples`` of at least 2. See :func:`snnet_kernels.jaccard_graph`. Needs scipy.

    Args:
        target_features: [n, d], rows of length 1, on any device; the search runs there.
        k1, k2: as in the original.
        print_flag: print the time it took.
        search_option, use_float16: ignored; distances are float32.
        max_distance: list no pair with a larger distance. Setting it to the eps of DBSCAN saves most of the memory.

    Returns:
        ``scipy.sparse.csr_array`` float32 [n, n].
    """
    start = time.perf_counter()
    graph = ops.jaccard_graph(target_features, k1, k2, max_distance=max_distance).to_scipy()
    if print_flag:
        print(f"Jaccard distances of {graph.shape[0]:,} images: {time.perf_counter() - start:.1f} s")
    return graph


class ClusterMemory(SampleMemory):
    """A memory of cluster centres ``features`` [num_samples, num_features], zeros until they are assigned.

    The loss is the cross entropy of the similarities divided by ``temp``. In the backward pass the centre of each
    target becomes normalize(momentum · centre + (1 − momentum) · input), for its inputs one after the other. With
    ``use_hard`` it is updated once, by its input that is least similar to the centre (the first one if there is a tie).
    """

    def __init__(
        self,
        num_features: int,
        num_samples: int,
        temp: float = 0.05,
        momentum: float = 0.2,
        use_hard: bool = False,
    ) -> None:
        super().__init__(num_features, num_samples, temp, momentum)
        self.use_hard = use_hard

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss [] of ``inputs`` [B, num_features], which are normalised here, and ``targets`` int64 [B]."""
        self._refuse_replication()
        _, temp = check_settings(self.momentum, self.temp)
        inputs = normalize(check_inputs(inputs, self.features), dim=1)
        targets = checks.check_index("targets", targets, len(self.features), len(inputs))
        update = ops.update_memory_by_hardest_ if self.use_hard else ops.update_memory_

        def learn(memory: Tensor, targets: Tensor, inputs: Tensor, _: Tensor | None) -> None:
            update(memory, targets, inputs, momentum=self.momentum)

        outputs = MemoryLayer.apply(inputs, targets, self.features, learn)
        return cross_entropy(outputs / temp, targets)
