"""A pytest plugin for interpreted Triton: what a kernel reads or writes outside its arguments is an error.

Needs TRITON_INTERPRET=1 in the environment. A masked lane may point anywhere.
"""

from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter

import tests.kernels.triton_interpreter  # noqa: F401

_builder = interpreter.InterpreterBuilder
_load, _store, _atomic = _builder.create_masked_load, _builder.create_masked_store, _builder.create_atomic_rmw
_run = interpreter.GridExecutor.__call__
_firsts = _ends = np.zeros(0, np.uint64)  # the addresses of the arguments of the kernel that runs, rising


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first address of a tensor and the one past its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size()
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * size if tensor.numel() else tensor.data_ptr()


def _checked_run(self: Any, *arguments: Any, **options: Any) -> None:
    global _firsts, _ends
    extents = sorted(_extent(value) for value in arguments if isinstance(value, torch.Tensor))
    _firsts, _ends = (np.array([extent[side] for extent in extents], np.uint64) for side in (0, 1))
    _ends = np.maximum.accumulate(_ends)  # of arguments that share memory the longest counts
    _run(self, *arguments, **options)


def _check(kind: str, pointers: Any, mask: Any) -> None:
    size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    pointer, active = np.broadcast_arrays(pointers.data, mask.data)
    address = pointer[active.astype(bool)].astype(np.uint64)
    argument = np.searchsorted(_firsts, address, side="right") - 1
    outside = (argument < 0) | (address + np.uint64(size) > _ends[argument])
    if outside.any():
        raise IndexError(f"{int(outside.sum())} lanes {kind} outside of the kernel's arguments")


def _checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
    _check("read", pointers, mask)
    return _load(self, pointers, mask, *rest)


def _checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    _check("write", pointers, mask)
    return _store(self, pointers, value, mask, *rest)


def _checked_atomic(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    _check("write", pointers, mask)
    return _atomic(self, operation, pointers, value, mask, *rest)


_builder.create_masked_load = _checked_load
_builder.create_masked_store = _checked_store
_builder.create_atomic_rmw = _checked_atomic
interpreter.GridExecutor.__call__ = _checked_run
