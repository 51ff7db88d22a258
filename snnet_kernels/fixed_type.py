"""What all modules with memories have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FixedTypeModule(nn.Module):
    """A module whose buffers move between devices but keep their types, and that no wrapper may replicate."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedTypeModule:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        with torch.inference_mode(False):  # a moved buffer counts its writes too
            return super()._apply(move, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        types = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None}
        super()._load_from_state_dict(*args, **kwargs)
        for name, dtype in types.items():  # assign=True takes the types of the file
            self._buffers[name] = self._buffers[name].to(dtype)  # type: ignore[union-attr]

    def _refuse_replication(self) -> None:
        """Raise RuntimeError inside a wrapper that overwrites buffers before each forward pass."""
        if torch.compiler.is_compiling():
            return
        wrapper = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
        replicated = getattr(self, "_is_replica", False)
        if replicated or (wrapper is not None and any(part is self for part in wrapper.module.modules())):
            kind, name = "DataParallel" if replicated else "DistributedDataParallel", type(self).__name__
            raise RuntimeError(
                f"{name} must stay outside of {kind}, which overwrites its memories before each forward pass: wrap the "
                f"network alone and give its features to {name}"
            )
