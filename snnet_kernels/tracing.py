"""Whether a tensor is one of numbers, or stands for one that is yet to come."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_values(tensor: Tensor) -> bool:
    """Whether eager code may read the tensor's values and address: not traced, fake, on meta, or transformed."""
    if torch.compiler.is_compiling():
        return False
    abstract = tensor.is_meta or isinstance(tensor, FakeTensor)
    return not abstract and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
