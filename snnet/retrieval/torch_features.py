"""Features in a file of ``torch.save``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnet.files.arrays import BARE, ArrayType
from snnet.files.safetensors_files import as_array
from snnet.files.text import FileFault, shown
from snnet.files.torch_files import read_torch, tensor_fault
from snnet.models.weight_names import is_network, open_container

# What the error of a file of weights says behind the file's name.
NETWORK = "holds the weights of a network, not features: snnet.extract makes features with them"


class TorchFeatures:
    """What ``torch.save`` wrote: a tensor, or a dict with tensors, and lists of text, by name."""

    def __init__(self, path: Path) -> None:
        content = read_torch(path)
        if isinstance(content, Tensor):
            content = {BARE: content}
        if not isinstance(content, dict):
            raise FileFault(f"must hold a tensor or a dict of tensors, got {type(content).__name__}")
        if not any(isinstance(value, Tensor) for value in content.values()):
            _refuse_network(content)
        self.content = {name: value for name, value in content.items() if isinstance(name, str)}
        self.types = {
            name: _type_of(value) for name, value in self.content.items() if isinstance(value, Tensor)
        }

    def read(self, name: str) -> np.ndarray:
        value = self.content[name]
        fault = tensor_fault(value)
        if fault is not None:
            raise FileFault(f"cannot be used: '{shown(name)}' is {fault}")
        return as_array(value)

    def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        yield self.read(name)


def _refuse_network(content: dict[Any, Any]) -> None:
    """Raise where the file keeps the weights of a network under a name such as "state_dict"."""
    weights = open_container(content)[0]
    tensors = weights.items() if isinstance(weights, dict) else ()
    if is_network({str(name): value.shape for name, value in tensors if isinstance(value, Tensor)}):
        raise FileFault(NETWORK)


def _type_of(tensor: Tensor) -> ArrayType:
    """What the array will be; objects for what is no dense tensor of numbers."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return ArrayType(() if tensor.is_nested else tuple(tensor.shape), np.dtype(object))
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() and name not in ("float16", "float32", "float64"):
        name = "float32"
    try:
        return ArrayType(tuple(tensor.shape), np.dtype(name))
    except TypeError:
        return ArrayType(tuple(tensor.shape), np.dtype(object))
