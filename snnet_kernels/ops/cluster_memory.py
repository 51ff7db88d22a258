"""The update of a memory of cluster centres by the hardest sample, as in cluster-contrast (``use_hard``)."""

from __future__ import annotations

from torch import Tensor

from .. import checks, reference
from ..checks import check_index_values, check_momentum_value
from .operation import operation


@operation(lambda *_: None, writes=("memory",))
def _update_memory_by_hardest_(memory: Tensor, index: Tensor, features: Tensor, momentum: Tensor) -> None:
    check_index_values("index", index, memory.shape[0])
    check_momentum_value(momentum)
    index, features, momentum = checks.apart([memory], index, features, momentum)
    reference.update_memory_by_hardest_(memory, index, features, momentum)


def update_memory_by_hardest_(
    memory: Tensor, index: Tensor, features: Tensor, momentum: float | Tensor
) -> None:
    """M[i] = normalize(α M[i] + (1 − α) f), in place, once for each distinct i in ``index``.

    Of the batch entries with index i, f is the feature that is least similar to M[i]; the first one if there is a tie.
    Everything else is as in :func:`snnet_kernels.update_memory_`.

    Args:
        memory: float32 [n, d], contiguous, written.
        index: int64 [B].
        features: [B, d], any floating type and strides, rows of length 1.
        momentum: α in [0, 1], a number or a 0-d tensor.
    """
    memory = checks.check_memory("memory", memory)
    features = checks.check_features("features", features, memory.shape[1]).detach()
    index = checks.check_index("index", index, memory.shape[0], features.shape[0])
    momentum = checks.check_momentum(momentum, memory.device)
    checks.check_same_device(memory=memory, index=index, features=features)
    _update_memory_by_hardest_(memory, index, features, momentum)
