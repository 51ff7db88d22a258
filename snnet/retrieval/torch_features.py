"""Features in a file of ``torch.save``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnet.files.archive import check_room
from snnet.files.arrays import BARE, ArrayType
from snnet.files.run_files import CHECKPOINT_FORMAT
from snnet.files.safetensors_files import as_array
from snnet.files.text import FileFault, shown
from snnet.files.torch_files import read_torch, tensor_fault
from snnet.models.weight_names import is_network, open_container
from snnet.system.progress import say

# What the error of a file of weights says behind the file's name.
NETWORK = "holds the weights of a network, not features: snnet.extract makes features with them"


class TorchFeatures:
    """What ``torch.save`` wrote: a tensor, or a dict with tensors, and lists of text, by name.

    A dict may also have one tensor [d] an image: they become ``features``, and the keys ``names``.
    """

    def __init__(self, path: Path) -> None:
        content = read_torch(path)
        if isinstance(content, Tensor):
            content = {BARE: content}
        if not isinstance(content, dict):
            raise FileFault(f"must hold a tensor or a dict of tensors, got {type(content).__name__}")
        if _is_by_image(content):
            rows = list(content.values())
            say(f"features of {path}: {len(rows):,} tensors {_type_of(rows[0])}, one an image")
            taken = len(rows) * rows[0].numel() * rows[0].element_size()
            held = sum(
                {part.data_ptr(): part.nbytes() for part in map(Tensor.untyped_storage, rows)}.values()
            )
            if taken > held:  # many may be views of the same few numbers
                raise FileFault(f"has tensors of {taken:,} bytes together, of which the file holds {held:,}")
            check_room(taken, "one array of its tensors")
            content = {BARE: torch.stack(rows), "names": list(map(str, content))}
        self.content = {name: value for name, value in content.items() if isinstance(name, str)}
        self.types = {
            name: _type_of(value) for name, value in self.content.items() if isinstance(value, Tensor)
        }
        if content and not self.types:
            raise _without_tensors(content)

    def read(self, name: str) -> np.ndarray:
        value = self.content[name]
        fault = tensor_fault(value)
        if fault is not None:
            raise FileFault(f"cannot be used: '{shown(name)}' is {fault}")
        return as_array(value)

    def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        yield self.read(name)


def _is_by_image(content: dict[Any, Any]) -> bool:
    """Whether each entry is the feature of an image, by its name or number, as SpCL and cluster-contrast extract."""
    values = list(content.values())
    return (
        len(values) > 1
        and BARE not in content
        and {type(name) for name in content} in ({str}, {int})
        and all(tensor_fault(value) is None for value in values)
        and values[0].dim() == 1
        and values[0].is_floating_point()
        and len({(value.shape, value.dtype) for value in values}) == 1
    )


def _without_tensors(content: dict[Any, Any]) -> FileFault:
    """What a file holds that has no tensor by name."""
    if shown(content.get("format")) == CHECKPOINT_FORMAT:
        return FileFault("is a training checkpoint: snnet.extract --checkpoint makes features with it")
    weights = open_container(content)[0]
    tensors = weights.items() if isinstance(weights, dict) else ()
    if is_network({str(name): value.shape for name, value in tensors if isinstance(value, Tensor)}):
        return FileFault(NETWORK)
    keys, values = (
        " and ".join(sorted({type(part).__name__ for part in parts}))
        for parts in (content.keys(), content.values())
    )
    return FileFault(
        f"has no tensor by name: of its {len(content):,} entries the keys are {keys}, the values {values}"
    )


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
