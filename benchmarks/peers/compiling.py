"""``torch.compile`` as a contender."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compiled(
    function: Callable[..., Any], device: torch.device, *, dynamic: bool | None = None
) -> Callable[..., Any]:
    """``torch.compile`` at its best: with max-autotune on a GPU; on a CPU there is nothing here that it would tune.

    ``dynamic``: sizes change from batch to batch (a count was read). Then without CUDA graphs, which would be
    recorded anew for each size.
    """
    torch._dynamo.reset()  # what was compiled for another shape or form counts toward dynamo's limit
    torch._logging.set_logs(dynamo=logging.ERROR)  # forms that read a count break the graph, and say so
    mode = None
    if device.type == "cuda":
        mode = "max-autotune-no-cudagraphs" if dynamic else "max-autotune"
    return torch.compile(function, dynamic=dynamic, mode=mode)


def static(*tensors: Tensor) -> None:
    """These stay where they are: CUDA graphs of compiled code need not copy them each time."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)
