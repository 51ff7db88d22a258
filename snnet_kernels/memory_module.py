"""What all modules with memories have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OVERWRITES = "overwrites its memories before each forward pass"


class MemoryModule(nn.Module):
    """A module whose memories are its own: no wrapper may overwrite or replicate them.

    They move between devices but keep their types.
    """

    def _refuse_replication(self) -> None:
        """Raise RuntimeError inside a wrapper that overwrites buffers before each forward pass."""
        if torch.compiler.is_compiling():
            return
        if getattr(self, "_is_replica", False):
            raise RuntimeError(_refusal(self, "DataParallel", OVERWRITES))
        wrapper = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
        if wrapper is not None and any(part is self for part in wrapper.module.modules()):
            raise RuntimeError(_refusal(self, "DistributedDataParallel", OVERWRITES))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryModule:
        def move(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        with torch.inference_mode(False):  # a moved buffer counts its writes too
            return super()._apply(move, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        own: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        types = [{name: t.dtype for name, t in tensors.items() if t is not None} for tensors in own]
        super()._load_from_state_dict(*args, **kwargs)
        for tensors, kept in zip(own, types, strict=True):
            for name, dtype in kept.items():
                loaded = tensors[name]
                if loaded.dtype == dtype:
                    continue
                tensors[name] = loaded.detach().to(dtype)  # assign=True takes the types of the file
                if tensors is self._parameters:
                    tensors[name] = nn.Parameter(tensors[name], requires_grad=loaded.requires_grad)


class UnaveragedModule(MemoryModule):
    """One whose tensors change in number and size: copies of it cannot be averaged."""


def _refuse_wrapped(wrapper: nn.Module, _: str, module: nn.Module | None) -> None:
    """Raise where memories are put into a wrapper, for programs that call them outside of its forward pass."""
    if isinstance(wrapper, nn.parallel.DistributedDataParallel):
        refused, does = MemoryModule, OVERWRITES
    elif isinstance(wrapper, torch.optim.swa_utils.AveragedModel):
        refused, does = UnaveragedModule, "averages tensors of fixed number and size"
    else:
        return
    for part in module.modules() if module is not None else ():
        if isinstance(part, refused):
            raise RuntimeError(_refusal(part, type(wrapper).__name__, does))


# A module cannot see its wrapper, so the wrapper is caught as it registers the module.
nn.modules.module.register_module_module_registration_hook(_refuse_wrapped)


def refuse_group(module: nn.Module, process_group: object, sharded: str) -> None:
    """Raise TypeError where a class that is not the ``sharded`` one is given a process group."""
    if process_group is not None:
        raise TypeError(
            f"{type(module).__name__} must be a subclass of snnet_kernels.distributed.{sharded} to take a process_group"
        )


def _refusal(module: nn.Module, wrapper: str, does: str) -> str:
    name = type(module).__name__
    remedy = f"wrap the network alone and give its features to {name}"
    return f"{name} must stay outside of {wrapper}, which {does}: {remedy}"
